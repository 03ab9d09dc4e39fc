//! The audit of what Stripe has on its books: what was paid there, what went back, and what is subscribed to,
//! against purchases, grants, reversals and subscriptions here. It only reads, on both sides.
//!
//! Stripe's lists are read a page at a time, and each page is held against ours by a few short reads, so that no
//! transaction is open while Stripe is asked and nothing waits for an audit. Then whatever we have of the same
//! time that was in no page is asked for by its id.
//!
//! Both sides change meanwhile. What looks like a difference is only suspected: after a moment it is read again,
//! at Stripe first and then here, and called drift if it is the very same as before and no event can explain it.
//! Such an event is one that Stripe has made within the last quarter of an hour and that was not applied yet, or
//! one that waits in the inbox for an operator. So what Stripe did before a suspicion was confirmed has either
//! been applied by then, which the second reading sees, or is found among those events.
//!
//! It is an operator's command and no part of the servers' own audits. Those come to the same result on every
//! replica and cost nobody else anything; Stripe bounds how often an account may ask, and every replica's reading
//! of all its lists would take from what Checkout needs. And a Stripe that fails says nothing about the books.
//!
//! Not compared: payments of before the time that is asked for, unless a subscription or an open dispute reaches
//! into it; payments that an app took by itself, but what went back of them; a payment that has no payment intent;
//! credits of later periods, which were those of the catalogue of then.
//!
//! # Failure behavior
//!
//! A page that can't be read or understood ends the comparison with an error: what was compared by then is no
//! clean bill.

mod compare;
mod here;
mod pending;
mod there;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    str::FromStr,
    time::Duration,
};

use serde::Serialize;

use super::{Failure, Stripe, StripeError, subscription};
use crate::{clock::Time, store::Rows};

pub use compare::Difference;
use pending::Pending;
use there::{Back, Invoice, List, Session, find};

/// After how long what is suspected is read again.
const PAUSE: Duration = Duration::from_secs(2);
/// Of how many days payments are compared where nothing else is asked for.
const DAYS: i64 = 90;
/// How often it is read until it is called changing.
const ROUNDS: usize = 5;

/// From when on payments are compared; `None`: all that there ever were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since(pub Option<Time>);

impl FromStr for Since {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Since, &'static str> {
        if text == "all" {
            return Ok(Since(None));
        }
        let at = Time::parse(text).or_else(|| Time::parse(&format!("{text}T00:00:00Z")));
        let at = at.filter(|at| at.0 > 0);
        at.map(|at| Since(Some(at))).ok_or("must be a day such as 2026-08-01, a moment in RFC 3339, or all")
    }
}

/// What the comparison came to.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Of when on payments were compared; `None`: of all times.
    pub since: Option<Time>,
    pub purchases: usize,
    pub invoices: usize,
    pub subscriptions: usize,
    /// Refunded charges, and disputes.
    pub reversals: usize,
    /// How many differences are drift.
    pub drifts: usize,
    /// How many are none, since an event explains them.
    pub open: usize,
    #[serde(skip)]
    pub differences: Vec<Difference>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { since, purchases, invoices, subscriptions, reversals, drifts, open, .. } = self;
        match since {
            Some(since) => write!(f, "Stripe since {since}: ")?,
            None => write!(f, "Stripe: ")?,
        }
        write!(f, "{purchases} purchases, {invoices} invoices, {subscriptions} subscriptions, ")?;
        write!(f, "{reversals} refunds and disputes; {open} to be applied or seen to: ")?;
        match drifts {
            0 => write!(f, "no drift"),
            some => write!(f, "drift in {some}"),
        }
    }
}

/// What is held against each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// By its id, and the Checkout that names it if that is known.
    Purchase(String, Option<String>),
    Invoice(String),
    Subscription(String),
    /// All that went back of a payment, by its intent.
    Payment(String),
    /// What stands of a grant of a payment that has no name of its own here, by the grant's reference.
    Grant(String),
}

/// What is to be looked at again, with the differences that it had.
type Suspects = BTreeMap<Subject, Vec<Difference>>;

/// One comparison under way.
struct Comparison<'a> {
    stripe: &'a Stripe,
    since: Time,
    plans: HashMap<String, String>,
    suspects: Suspects,
    report: Report,
}

/// Compares what was made since then; where nothing is said, within [`DAYS`].
pub async fn compare(stripe: &Stripe, since: Option<Since>) -> Result<Report, Failure> {
    let lately = stripe.db.now().await?.0.saturating_sub(DAYS * 86_400_000);
    let Since(since) = since.unwrap_or(Since(Some(Time(lately))));
    let plans = here::plans_by_price(&stripe.db).await?;
    let report = Report { since, ..Report::default() };
    let since = since.unwrap_or(Time(0));
    let mut comparison = Comparison { stripe, since, plans, suspects: Suspects::new(), report };
    comparison.look_at_purchases().await?;
    comparison.look_at_invoices().await?;
    comparison.look_at_subscriptions().await?;
    comparison.look_at_reversals().await?;
    comparison.confirm().await
}

impl Comparison<'_> {
    fn suspect(&mut self, subject: Subject, differences: Vec<Difference>) {
        if !differences.is_empty() {
            self.suspects.entry(subject).or_default().extend(differences);
        }
    }

    /// Has it asked for by its id: it was in no page.
    fn miss(&mut self, subject: Subject) {
        self.suspects.entry(subject).or_default();
    }

    async fn look_at_purchases(&mut self) -> Result<(), Failure> {
        let db = &self.stripe.db;
        let mut seen = HashSet::new();
        let mut list = List::completed_sessions(self.since);
        while let Some(page) = list.next(&self.stripe.client).await? {
            let sessions = page.iter().map(Session::read).collect::<Result<Vec<_>, _>>()?;
            let known = here::purchases(db, sessions.iter().filter_map(|one| one.purchase.as_ref())).await?;
            let invoices = sessions.iter().filter_map(|session| session.invoice.as_ref());
            let granted = here::grants_of_invoices(db, invoices).await?;
            for session in sessions {
                let ours = |id: &String| known.contains_key(id) || compare::is_a_purchase(id);
                let Some(id) = session.purchase.clone().filter(ours) else { continue };
                let invoiced = session.invoice.as_ref().is_some_and(|id| granted.contains_key(id));
                let differences = compare::purchase(&id, known.get(&id), Some(&session), invoiced);
                self.suspect(Subject::Purchase(id.clone(), Some(session.id)), differences);
                seen.insert(id);
            }
        }
        let mut after = String::new();
        loop {
            let page = here::paid_purchases(db, &after, self.since).await?;
            let Some(last) = page.last() else { break };
            after = last.id.clone();
            for purchase in page {
                if seen.insert(purchase.id.clone()) {
                    self.miss(Subject::Purchase(purchase.id, None));
                }
            }
        }
        self.report.purchases = seen.len();
        Ok(())
    }

    async fn look_at_invoices(&mut self) -> Result<(), Failure> {
        let db = &self.stripe.db;
        let mut seen = HashSet::new();
        let mut list = List::paid_invoices(self.since);
        while let Some(page) = list.next(&self.stripe.client).await? {
            let invoices = page.iter().map(Invoice::read).collect::<Result<Vec<_>, _>>()?;
            let grants = here::grants_of_invoices(db, invoices.iter().map(|invoice| &invoice.id)).await?;
            let of = Rows::of(invoices.iter().filter_map(|invoice| invoice.subscription.as_ref()));
            let subscriptions: HashMap<_, _> = subscription::known(db, of)
                .await?
                .into_iter()
                .map(|known| (known.id.clone(), known))
                .collect();
            let of = |invoice: &Invoice| invoice.subscription.as_ref().and_then(|id| subscriptions.get(id));
            let named = |invoice: &Invoice| {
                of(invoice).and_then(|known| known.purchase.clone()).or(invoice.purchase.clone())
            };
            let names: Vec<String> = invoices.iter().filter_map(named).collect();
            let purchases = here::purchases(db, &names).await?;
            for invoice in &invoices {
                let (grant, subscription) = (grants.get(&invoice.id), of(invoice));
                let purchase = named(invoice).and_then(|id| purchases.get(&id));
                if grant.is_some() || subscription.is_some() || purchase.is_some() {
                    seen.insert(invoice.id.clone());
                }
                let there = Some(invoice);
                let differences = compare::invoice(&invoice.id, grant, subscription, purchase, there);
                self.suspect(Subject::Invoice(invoice.id.clone()), differences);
            }
        }
        let mut after = String::new();
        loop {
            let page = here::next_grants(db, &after, self.since).await?;
            let Some(last) = page.last() else { break };
            after = last.reference.clone();
            for grant in page {
                let differences = self.standing(&grant, &[]).await?;
                // Whether it is the grant that is wrong, or what is known to have gone back, Stripe tells.
                let subject = match grant.payment_intent.clone() {
                    Some(intent) => Subject::Payment(intent),
                    None => Subject::Grant(grant.reference.clone()),
                };
                self.suspect(subject, differences);
                if let Some(id) = grant.reference.strip_prefix("invoice/")
                    && seen.insert(id.to_owned())
                {
                    self.miss(Subject::Invoice(id.to_owned()));
                }
            }
        }
        self.report.invoices = seen.len();
        Ok(())
    }

    async fn look_at_subscriptions(&mut self) -> Result<(), Failure> {
        let db = &self.stripe.db;
        let mut seen = HashSet::new();
        let mut list = List::subscriptions();
        while let Some(page) = list.next(&self.stripe.client).await? {
            let theirs = page.iter().map(there::Subscription::read).collect::<Result<Vec<_>, _>>()?;
            let ours = subscription::known(db, Rows::of(theirs.iter().map(|one| &one.id))).await?;
            let ours: HashMap<_, _> = ours.into_iter().map(|known| (known.id.clone(), known)).collect();
            let named = |there: &there::Subscription| {
                ours.get(&there.id).and_then(|known| known.purchase.clone()).or(there.purchase.clone())
            };
            let names: Vec<String> = theirs.iter().filter_map(named).collect();
            let purchases = here::purchases(db, &names).await?;
            for there in &theirs {
                let (here, purchase) = (ours.get(&there.id), named(there).and_then(|id| purchases.get(&id)));
                if here.is_some() {
                    seen.insert(there.id.clone());
                }
                let differences = compare::subscription(&there.id, here, purchase, Some(there), &self.plans);
                self.suspect(Subject::Subscription(there.id.clone()), differences);
            }
        }
        let mut after = String::new();
        loop {
            let ids = subscription::next_ids(db, &after, here::PAGE).await?;
            let Some(last) = ids.last() else { break };
            after = last.clone();
            for known in subscription::known(db, Rows::of(&ids)).await? {
                // What has ended stays so.
                if known.status != "canceled" && seen.insert(known.id.clone()) {
                    self.miss(Subject::Subscription(known.id));
                }
            }
        }
        self.report.subscriptions = seen.len();
        Ok(())
    }

    async fn look_at_reversals(&mut self) -> Result<(), Failure> {
        let client = &self.stripe.client;
        let mut seen = HashSet::new();
        let mut refunds = List::refunds(self.since);
        while let Some(page) = refunds.next(client).await? {
            let mut charges = Vec::new();
            for refund in page {
                match (refund.part("charge"), refund.id("charge")) {
                    (Some(charge), _) => charges.push(Back::of_charge(&charge)?),
                    (None, Some(id)) => {
                        let charge = find(client, "/charges", &id).await?;
                        charges.extend(charge.map(|charge| Back::of_charge(&charge)).transpose()?);
                    }
                    (None, None) => {}
                }
            }
            self.look_at_page_of_reversals(charges, &mut seen).await?;
        }
        let mut disputes = List::disputes(self.since);
        while let Some(page) = disputes.next(client).await? {
            let page = page.iter().map(Back::of_dispute).collect::<Result<Vec<_>, _>>()?;
            self.look_at_page_of_reversals(page, &mut seen).await?;
        }
        let mut after = String::new();
        loop {
            let page = here::next_back(&self.stripe.db, &after, self.since).await?;
            let Some(last) = page.last() else { break };
            after = last.id.clone();
            for back in page {
                if seen.insert(back.id)
                    && let Some(intent) = back.payment_intent
                {
                    self.miss(Subject::Payment(intent));
                }
            }
        }
        self.report.reversals = seen.len();
        Ok(())
    }

    async fn look_at_page_of_reversals(
        &mut self,
        page: Vec<Back>,
        seen: &mut HashSet<String>,
    ) -> Result<(), Failure> {
        let db = &self.stripe.db;
        let known = here::back(db, page.iter().map(|back| &back.id)).await?;
        let customers = here::customers(db, page.iter().filter_map(|back| back.customer.as_ref())).await?;
        for back in page {
            let here = known.get(&back.id);
            // Whoever bought here may be refunded something that was bought elsewhere, and a dispute says not
            // whose it is; a closer look tells.
            let ours = here.is_some()
                || back.customer.as_ref().is_none_or(|customer| customers.contains(customer))
                || self.paid_for_any(&back).await?;
            let Some(intent) = back.payment_intent.clone().filter(|_| ours) else { continue };
            if here.is_some() {
                seen.insert(back.id.clone());
            }
            self.suspect(Subject::Payment(intent), compare::back(&back.id, here, Some(&back)));
        }
        Ok(())
    }

    async fn paid_for_any(&self, back: &Back) -> Result<bool, Failure> {
        let Some(intent) = &back.payment_intent else { return Ok(false) };
        let grants = here::grants_of(&self.stripe.db, intent, back.invoice.as_deref(), &back.charge).await?;
        Ok(!grants.is_empty())
    }

    /// What stands of a grant, by what is known to have gone back, and what Stripe says of it.
    async fn standing(&self, grant: &here::Grant, there: &[Back]) -> Result<Vec<Difference>, Failure> {
        let here::Grant { payment_intent, charge_id, invoice_id, .. } = grant;
        let (intent, charge, invoice) =
            (payment_intent.as_deref(), charge_id.as_deref(), invoice_id.as_deref());
        let known = here::back_of(&self.stripe.db, intent, charge, invoice).await?;
        let known = known.into_iter().map(|back| (back.id.clone(), back.taken()));
        let told = there.iter().map(|back| (back.id.clone(), back.taken()));
        Ok(compare::standing(grant, &known.chain(told).collect()))
    }

    /// Reads a subject anew, at Stripe and then here.
    async fn examine(&self, subject: &Subject) -> Result<Vec<Difference>, Failure> {
        let Stripe { db, client, .. } = self.stripe;
        match subject {
            Subject::Purchase(id, session) => {
                let there = self.session_of(id, session.as_deref()).await?;
                let invoice = there.as_ref().and_then(|session| session.invoice.as_ref());
                let invoiced = !here::grants_of_invoices(db, invoice).await?.is_empty();
                let here = here::purchases(db, [id]).await?.remove(id);
                Ok(compare::purchase(id, here.as_ref(), there.as_ref(), invoiced))
            }
            Subject::Invoice(id) => {
                let there = find(client, "/invoices", id).await?;
                let there = there.map(|found| Invoice::read(&found)).transpose()?;
                let grant = here::grants_of_invoices(db, [id]).await?.remove(id);
                let of = there.as_ref().and_then(|invoice| invoice.subscription.as_ref());
                let known = subscription::known(db, Rows::of(of)).await?.pop();
                let named = known.as_ref().and_then(|known| known.purchase.clone());
                let named = named.or(there.as_ref().and_then(|invoice| invoice.purchase.clone()));
                let purchase = here::purchases(db, &named).await?.into_values().next();
                let (grant, known, purchase) = (grant.as_ref(), known.as_ref(), purchase.as_ref());
                Ok(compare::invoice(id, grant, known, purchase, there.as_ref()))
            }
            Subject::Subscription(id) => {
                let there = find(client, "/subscriptions", id).await?;
                let there = there.map(|found| there::Subscription::read(&found)).transpose()?;
                let known = subscription::known(db, Rows::of([id])).await?.pop();
                let named = known.as_ref().and_then(|known| known.purchase.clone());
                let named = named.or(there.as_ref().and_then(|there| there.purchase.clone()));
                let purchase = here::purchases(db, &named).await?.into_values().next();
                let (known, purchase) = (known.as_ref(), purchase.as_ref());
                Ok(compare::subscription(id, known, purchase, there.as_ref(), &self.plans))
            }
            Subject::Payment(intent) => self.examine_payment(intent).await,
            Subject::Grant(reference) => match here::grant(db, reference).await? {
                Some(grant) => self.standing(&grant, &[]).await,
                None => Ok(Vec::new()),
            },
        }
    }

    /// The Checkout of a purchase, by its own id or else by what the purchase knows of it.
    async fn session_of(&self, purchase: &str, session: Option<&str>) -> Result<Option<Session>, Failure> {
        let Stripe { db, client, .. } = self.stripe;
        let purchase = purchase.to_owned();
        let known = here::purchases(db, [&purchase]).await?.remove(&purchase);
        let of = session.or(known.as_ref().and_then(|known| known.session_id.as_deref()));
        if let Some(id) = of {
            let found = find(client, "/checkout/sessions", id).await?;
            return Ok(found.map(|found| Session::read(&found)).transpose()?);
        }
        let Some(known) = known else { return Ok(None) };
        let theirs = List::sessions_of(&known.customer_id).all(client).await?;
        let theirs = theirs.iter().map(Session::read).collect::<Result<Vec<_>, StripeError>>()?;
        let mut theirs: Vec<Session> =
            theirs.into_iter().filter(|session| session.purchase.as_ref() == Some(&purchase)).collect();
        // If there are several, the one that was paid.
        theirs.sort_by_key(Session::is_paid);
        Ok(theirs.pop())
    }

    /// All that went back of a payment, or may, and what that leaves of what it paid for.
    async fn examine_payment(&self, intent: &str) -> Result<Vec<Difference>, Failure> {
        let Stripe { db, client, .. } = self.stripe;
        let charges = List::charges_of(intent).all(client).await?;
        let charges = charges.iter().map(Back::of_charge).collect::<Result<Vec<_>, StripeError>>()?;
        let disputes = List::disputes_of(intent).all(client).await?;
        let disputes = disputes.iter().map(Back::of_dispute).collect::<Result<Vec<_>, StripeError>>()?;
        let ids: Vec<String> = charges.iter().map(|charge| charge.id.clone()).collect();
        let customers =
            here::customers(db, charges.iter().filter_map(|charge| charge.customer.as_ref())).await?;
        let mut invoice = charges.iter().find_map(|charge| charge.invoice.clone());
        let mut grants = here::grants_of(db, intent, invoice.as_deref(), &ids).await?;
        if grants.is_empty() && invoice.is_none() && !customers.is_empty() {
            // By its invoice alone a grant is known if its event named no payment.
            invoice = client.read_invoice_of(intent).await?;
            grants = here::grants_of(db, intent, invoice.as_deref(), &ids).await?;
        }
        let there: Vec<Back> =
            charges.into_iter().filter(|charge| charge.amount_cents > 0).chain(disputes).collect();
        let known = here::back_of(db, Some(intent), None, None).await?.into_iter();
        let mut known: HashMap<String, here::Back> = known.map(|back| (back.id.clone(), back)).collect();
        known.extend(here::back(db, there.iter().map(|back| &back.id).chain(&ids)).await?);
        let mut differences = Vec::new();
        for back in &there {
            let here = known.remove(&back.id);
            if here.is_some() || !grants.is_empty() {
                differences.extend(compare::back(&back.id, here.as_ref(), Some(back)));
            }
        }
        // What Stripe knows nothing of, or nothing any more, takes nothing away.
        let mut truth = there;
        for (id, here) in known {
            differences.extend(compare::back(&id, Some(&here), None));
            truth.push(Back { id, status: "won".to_owned(), ..Back::default() });
        }
        for grant in &grants {
            differences.extend(self.standing(grant, &truth).await?);
        }
        Ok(differences)
    }

    /// Reads what is suspected again until it is known to be drift or none.
    async fn confirm(mut self) -> Result<Report, Failure> {
        let mut found: BTreeMap<(String, &'static str), Difference> = BTreeMap::new();
        for round in 0..ROUNDS {
            if self.suspects.is_empty() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            let pending = Pending::read(self.stripe, self.since).await?;
            for (subject, before) in std::mem::take(&mut self.suspects) {
                let mut now = self.examine(&subject).await?;
                let mut settled = true;
                for difference in &mut now {
                    // Drift is what was the same before the events were asked for that may explain it.
                    let same = before.iter().any(|known| same(known, difference));
                    difference.open = pending.explains(difference);
                    if difference.open.is_none() && !same {
                        settled = false;
                        difference.open = (round + 1 == ROUNDS).then_some("changing");
                    }
                }
                if !settled && round + 1 < ROUNDS {
                    self.suspects.insert(subject, now);
                    continue;
                }
                for difference in now {
                    found.insert((difference.subject.clone(), difference.what), difference);
                }
            }
        }
        self.report.differences = found.into_values().collect();
        self.report.open = self.report.differences.iter().filter(|one| one.open.is_some()).count();
        self.report.drifts = self.report.differences.len() - self.report.open;
        Ok(self.report)
    }
}

fn same(one: &Difference, other: &Difference) -> bool {
    let key = |difference: &Difference| {
        let Difference { subject, what, stored, expected, .. } = difference.clone();
        (subject, what, stored, expected)
    };
    key(one) == key(other)
}
