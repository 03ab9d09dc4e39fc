//! Goes through all that Stripe has and all that we have, page by page, for what is suspected to differ.

use std::collections::{HashMap, HashSet};

use super::{
    super::{Failure, subscription},
    Comparison, Subject, compare, here,
    there::{self, Back, Invoice, List, Session, find},
};
use crate::store::Rows;

impl Comparison<'_> {
    pub(super) async fn look_at_purchases(&mut self) -> Result<(), Failure> {
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

    pub(super) async fn look_at_invoices(&mut self) -> Result<(), Failure> {
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

    pub(super) async fn look_at_subscriptions(&mut self) -> Result<(), Failure> {
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

    pub(super) async fn look_at_reversals(&mut self) -> Result<(), Failure> {
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
}
