//! One subject, read anew on both sides: at Stripe first and then here, so that what Stripe did before is known
//! here if its event was applied meanwhile.

use std::collections::HashMap;

use super::{
    super::{Failure, Stripe, StripeError, subscription},
    Comparison, Difference, Subject, compare, here,
    there::{self, Back, Invoice, List, Session, find},
};
use crate::store::Rows;

impl Comparison<'_> {
    /// What stands of a grant, by what is known to have gone back, and what Stripe says of it.
    pub(super) async fn standing(
        &self,
        grant: &here::Grant,
        there: &[Back],
    ) -> Result<Vec<Difference>, Failure> {
        let here::Grant { payment_intent, charge_id, invoice_id, .. } = grant;
        let (intent, charge, invoice) =
            (payment_intent.as_deref(), charge_id.as_deref(), invoice_id.as_deref());
        let known = here::back_of(&self.stripe.db, intent, charge, invoice).await?;
        let known = known.into_iter().map(|back| (back.id.clone(), back.taken()));
        let told = there.iter().map(|back| (back.id.clone(), back.taken()));
        Ok(compare::standing(grant, &known.chain(told).collect()))
    }

    /// Reads a subject anew, at Stripe and then here.
    pub(super) async fn examine(&self, subject: &Subject) -> Result<Vec<Difference>, Failure> {
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
}
