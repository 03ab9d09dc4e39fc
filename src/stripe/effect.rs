//! What an event does to the books. It is believed only about a purchase of ours, and only if
//! customer, amount and currency are what was sold.
//!
//! Nothing here trusts the order of events: a purchase's status is only raised, a subscription keeps
//! the newest word by the event's own time, and credits stand as far as they were paid for and not
//! paid back.

use super::{
    event::{Event, Object},
    invoice,
    purchase::{self, Purchase, Sold, Status},
    subscription::{self, Subscription, Teller, Told},
};
use crate::{
    clock::Time,
    inbox::Verdict,
    store::{Db, StoreError, Tx, binds, statements},
    wallet::{self, Grant, PaidFor, Payment, Reversal, ReversalStatus},
};

statements! {
    PLAN_OF_PRICE = "SELECT code FROM plans WHERE stripe_price_id = $1";
    INCLUDED_CREDITS = "SELECT included_credits FROM plans WHERE code = $1";
}

/// Applies `event` inside `tx`. `invoice` is the one that a refund or a dispute is of, where that had
/// to be asked for.
pub async fn apply(
    tx: &mut Tx,
    event: &Event,
    invoice: Option<String>,
    now: Time,
) -> Result<Verdict, StoreError> {
    match event.kind.as_str() {
        "checkout.session.completed"
        | "checkout.session.async_payment_succeeded"
        | "checkout.session.async_payment_failed"
        | "checkout.session.expired" => checkout(tx, event, now).await,
        "customer.subscription.created"
        | "customer.subscription.updated"
        | "customer.subscription.deleted"
        | "customer.subscription.paused"
        | "customer.subscription.resumed" => subscription(tx, event, now).await,
        "invoice.paid" | "invoice.payment_failed" => bill(tx, event, now).await,
        "charge.refunded" => refund(tx, event, invoice, now).await,
        "charge.dispute.created" | "charge.dispute.closed" => dispute(tx, event, invoice, now).await,
        _ => Ok(ignored("its type is not acted on")),
    }
}

/// The payment that a refund or a dispute is of, if nothing that was granted is known to be paid by it
/// and its invoice may tell more.
pub async fn unknown_payment(db: &Db, event: &Event) -> Result<Option<String>, StoreError> {
    let object = &event.object;
    if !matches!(event.kind.as_str(), "charge.refunded" | "charge.dispute.created" | "charge.dispute.closed")
        || object.id("invoice").is_some()
    {
        return Ok(None);
    }
    let Some(intent) = object.id("payment_intent") else { return Ok(None) };
    let charge = object.id("charge").or(object.id("id"));
    let mut tx = db.begin_read().await?;
    let foreign = match object.id("customer") {
        Some(customer) => !purchase::is_customer(&mut tx, &customer).await?,
        None => false,
    };
    let payment = Payment { intent: Some(intent.clone()), charge, invoice: None };
    let known = foreign || wallet::paid_for_any(&mut tx, &payment).await?;
    tx.rollback().await?;
    Ok((!known).then_some(intent))
}

fn applied(what: &str) -> Verdict {
    Verdict::Applied(what.to_owned())
}

fn ignored(why: &str) -> Verdict {
    Verdict::Ignored(why.to_owned())
}

fn kept(why: &str) -> Verdict {
    Verdict::Kept(why.to_owned())
}

/// What is not ours: somebody else's, unless it was paid; then an operator has to see to it.
fn not_ours(paid: bool, why: &str) -> Verdict {
    if paid { kept(why) } else { ignored(why) }
}

async fn checkout(tx: &mut Tx, event: &Event, now: Time) -> Result<Verdict, StoreError> {
    let session = &event.object;
    let says_paid = session.text("payment_status") == Some("paid");
    let paid = says_paid
        && matches!(
            event.kind.as_str(),
            "checkout.session.completed" | "checkout.session.async_payment_succeeded"
        );
    let named = session.text("client_reference_id").or(session.text("metadata/purchase_id"));
    let Some(named) = named else { return Ok(not_ours(paid, "it names no purchase")) };
    let Some(mut purchase) = purchase::get(tx, named).await? else {
        return Ok(not_ours(paid, "there is no such purchase"));
    };
    let Some(id) = session.id("id") else { return Ok(not_ours(paid, "it has no id")) };
    if purchase.session.as_ref().is_some_and(|known| *known != id) {
        return Ok(not_ours(paid, "the purchase has another Checkout session"));
    }
    if session.id("customer").as_ref() != Some(&purchase.customer) {
        return Ok(not_ours(paid, "the purchase has another customer"));
    }
    if purchase::has_session(tx, &id, &purchase.id).await? {
        return Ok(not_ours(paid, "the Checkout session is another purchase's"));
    }
    purchase.session = Some(id);
    let began = session.id("subscription");
    purchase.subscription = purchase.subscription.or(began.clone());
    let verdict = match event.kind.as_str() {
        "checkout.session.expired" => {
            purchase.advance(Status::Expired);
            applied("the Checkout expired")
        }
        "checkout.session.async_payment_failed" => {
            purchase.advance(Status::Failed);
            applied("the payment failed")
        }
        _ if paid => {
            let amount = session.cents("amount_total");
            if !purchase.was_sold_for(amount, session.currency("currency").as_deref()) {
                purchase.advance(Status::Mismatched);
                kept("another amount or currency was paid than was asked for")
            } else {
                purchase.advance(Status::Paid);
                match purchase.sold.clone() {
                    Sold::Credits(credits) => {
                        buy_credits(tx, &purchase, credits, event, now).await?;
                        applied("credits were bought")
                    }
                    Sold::Plan(_) => match began {
                        Some(id) if subscription::another_in_force(tx, &purchase.account, &id).await? => {
                            purchase.subscription = Some(id);
                            kept("a plan was bought beside another that is in force: cancel one of them")
                        }
                        Some(id) => {
                            purchase.subscription = Some(id);
                            applied("a plan was bought")
                        }
                        None => kept("it was paid and begins no subscription"),
                    },
                }
            }
        }
        // Complete, and the money is still to come.
        _ if session.text("payment_status") == Some("unpaid") => {
            purchase.advance(Status::Processing);
            applied("the payment is under way")
        }
        // Nothing to pay now: what the subscription says of itself counts.
        _ => applied("nothing was paid"),
    };
    purchase.update(tx, now).await?;
    if let (Sold::Plan(_), Some(id)) = (&purchase.sold, &purchase.subscription) {
        let mut subscription = known_subscription(tx, id, &purchase, now).await?;
        if purchase.status == Status::Paid && paid {
            // A payment with a delay comes long after the subscription began, which is what it tells of:
            // whatever the subscription has said of itself meanwhile is newer.
            let at = match event.kind.as_str() {
                "checkout.session.completed" => event.created_at,
                _ => Time(0),
            };
            let told = Told { status: "active".to_owned(), at, teller: Teller::Beginning };
            subscription.hear(&told);
        }
        subscription::put(tx, &subscription, now).await?;
    }
    // What it was told before may not hold any more.
    subscription::update_plan(tx, &purchase.account, now).await?;
    Ok(verdict)
}

async fn buy_credits(
    tx: &mut Tx,
    purchase: &Purchase,
    credits: i64,
    event: &Event,
    now: Time,
) -> Result<(), StoreError> {
    let payment = Payment {
        intent: event.object.id("payment_intent"),
        charge: None,
        invoice: event.object.id("invoice"),
    };
    let grant = Grant {
        paid_for: PaidFor::Purchase(purchase.id.clone()),
        account: purchase.account.clone(),
        credits,
        credit_value: purchase.credit_value,
        amount_cents: purchase.amount_cents,
        payment,
    };
    Ok(wallet::grant(tx, &grant, &event.id, now).await?)
}

/// The subscription as it is known, or a new one, and in any case `purchase`'s.
async fn known_subscription(
    tx: &mut Tx,
    id: &str,
    purchase: &Purchase,
    now: Time,
) -> Result<Subscription, StoreError> {
    let mut known = subscription::get(tx, id).await?;
    if let Some(of) = known.as_ref().and_then(|known| known.purchase.clone())
        && of != purchase.id
        && purchase::get(tx, of.as_str()).await?.is_some_and(|of| of.subscription.as_deref() == Some(id))
    {
        // By Checkout's word it was another purchase's, not only by a guess: that one's past is not this one's.
        known = None;
    }
    let mut subscription =
        known.unwrap_or_else(|| Subscription::new(id.to_owned(), purchase.account.clone(), now));
    subscription.purchase = Some(purchase.id.clone());
    Ok(subscription)
}

async fn subscription(tx: &mut Tx, event: &Event, now: Time) -> Result<Verdict, StoreError> {
    let object = &event.object;
    let (Some(id), Some(customer)) = (object.id("id"), object.id("customer")) else {
        return Ok(ignored("it names no subscription or no customer"));
    };
    let Some(purchase) = purchase::behind(tx, &customer, &id, object.text("metadata/purchase_id")).await?
    else {
        return Ok(ignored("no purchase of ours began it"));
    };
    let status = match event.kind.as_str() {
        "customer.subscription.deleted" => Some("canceled"),
        _ => object.text("status"),
    };
    let Some(status) = status else { return Ok(ignored("it has no status")) };
    let plan = plan_of(tx, object).await?;
    // What was paid by a Checkout of ours stays believed, also when its price is changed later.
    if plan.is_none() && purchase.status != Status::Paid && !costs_what_was_sold(object, &purchase) {
        return Ok(kept("its price is another than what was sold"));
    }
    let mut subscription = known_subscription(tx, &id, &purchase, now).await?;
    let teller = match event.kind.as_str() {
        "customer.subscription.created" => Teller::Beginning,
        _ => Teller::Change,
    };
    let told = Told { status: status.to_owned(), at: event.created_at, teller };
    let taken = subscription.hear(&told);
    let end = object.time("current_period_end").or(object.time("items/data/0/current_period_end"));
    subscription.see(&told, plan, end, object.is_true("cancel_at_period_end"));
    subscription::put(tx, &subscription, now).await?;
    Ok(match taken {
        true => Verdict::Applied(format!("the subscription is {status}")),
        false => applied("something newer is known"),
    })
}

/// The plan of the catalogue that has the subscription's price at Stripe.
async fn plan_of(tx: &mut Tx, subscription: &Object) -> Result<Option<String>, StoreError> {
    match subscription.id("items/data/0/price").or(subscription.id("plan")) {
        Some(price) => plan_of_price(tx, &price).await,
        None => Ok(None),
    }
}

async fn plan_of_price(tx: &mut Tx, price: &str) -> Result<Option<String>, StoreError> {
    let plan: Option<(String,)> = tx.optional(&PLAN_OF_PRICE, binds![price]).await?;
    Ok(plan.map(|(code,)| code))
}

/// Whether its price, where it states one, is what was asked for.
fn costs_what_was_sold(subscription: &Object, purchase: &Purchase) -> bool {
    let items = subscription.list("items/data");
    let price = |item: &Object| {
        let quantity = item.int("quantity").unwrap_or(1);
        Some((item.cents("price/unit_amount")?.checked_mul(quantity)?, item.currency("price/currency")?))
    };
    let prices: Vec<_> = items.iter().filter_map(price).collect();
    let total = prices.iter().try_fold(0i64, |sum, (amount, _)| sum.checked_add(*amount));
    prices.is_empty()
        || (total == Some(purchase.amount_cents)
            && prices.iter().all(|(_, currency)| *currency == purchase.currency))
}

async fn bill(tx: &mut Tx, event: &Event, now: Time) -> Result<Verdict, StoreError> {
    let invoice = &event.object;
    let amount = invoice::amount(invoice);
    let paid = event.kind == "invoice.paid" && invoice.text("status").is_none_or(|status| status == "paid");
    let charged = paid && amount.is_some_and(|amount| amount > 0);
    if event.kind == "invoice.paid" && !charged {
        return Ok(ignored("nothing was paid"));
    }
    let (Some(id), Some(customer), Some(of)) =
        (invoice.id("id"), invoice.id("customer"), invoice::subscription_of(invoice))
    else {
        return Ok(not_ours(charged, "it is of no subscription"));
    };
    let names = invoice::names_purchase(invoice);
    let Some(mut purchase) = purchase::behind(tx, &customer, &of, names).await? else {
        return Ok(not_ours(charged, "no purchase of ours began its subscription"));
    };
    let mut subscription = known_subscription(tx, &of, &purchase, now).await?;
    if !paid {
        subscription.hear_invoice(false, event.created_at, None);
        subscription::put(tx, &subscription, now).await?;
        return Ok(applied("an invoice could not be paid"));
    }
    subscription.hear_invoice(true, event.created_at, invoice::period_end(invoice));
    // Between periods, when a plan is changed for example, nothing begins that would bring credits.
    if invoice::begins_a_period(invoice) {
        let Some(plan) = plan_paid_for(tx, invoice, &purchase).await? else {
            return Ok(kept("another amount or currency was paid than was asked for"));
        };
        purchase.advance(Status::Paid);
        purchase.update(tx, now).await?;
        let first = invoice.text("billing_reason") == Some("subscription_create")
            && purchase.plan() == Some(plan.as_str());
        let credits = match first {
            true => purchase.included_credits,
            false => included_credits(tx, &plan).await?,
        };
        let grant = Grant {
            paid_for: PaidFor::Invoice(id.clone()),
            account: purchase.account.clone(),
            credits,
            credit_value: purchase.credit_value,
            amount_cents: amount.unwrap_or(0),
            payment: Payment {
                intent: invoice.id("payment_intent").or(invoice.id("payments/data/0/payment/payment_intent")),
                charge: invoice.id("charge").or(invoice.id("payments/data/0/payment/charge")),
                invoice: Some(id),
            },
        };
        wallet::grant(tx, &grant, &event.id, now).await?;
    }
    subscription::put(tx, &subscription, now).await?;
    Ok(applied("an invoice was paid"))
}

/// The plan whose period was paid for: the one of the catalogue that has the line's price at Stripe,
/// or the purchase's, if the line, or the whole invoice, comes to what that was sold for. (A line does
/// not have the taxes and discounts in it that the whole has.)
async fn plan_paid_for(
    tx: &mut Tx,
    invoice: &Object,
    purchase: &Purchase,
) -> Result<Option<String>, StoreError> {
    let currency = invoice.currency("currency");
    if currency.as_ref() != Some(&purchase.currency) {
        return Ok(None);
    }
    let periods = invoice::periods(invoice);
    for line in &periods {
        let price = ["price", "pricing/price_details/price", "plan"].iter().find_map(|path| line.id(path));
        if let Some(price) = price
            && let Some(plan) = plan_of_price(tx, &price).await?
        {
            return Ok(Some(plan));
        }
    }
    // What was paid from a balance at Stripe is in the total alone.
    let amounts = [invoice.cents("amount_paid").filter(|paid| *paid > 0), invoice.cents("total")];
    let lines = periods.iter().try_fold(0i64, |sum, line| sum.checked_add(line.cents("amount")?));
    let lines = lines.filter(|lines| *lines > 0 && invoice::adds_up(invoice));
    let sold = |amount: &Option<i64>| purchase.was_sold_for(*amount, currency.as_deref());
    let whole =
        amounts.iter().flatten().all(|amount| sold(&Some(*amount))) && amounts.iter().any(Option::is_some);
    Ok(purchase.plan().filter(|_| whole || sold(&lines)).map(str::to_owned))
}

async fn included_credits(tx: &mut Tx, plan: &str) -> Result<i64, StoreError> {
    let row: Option<(i64,)> = tx.optional(&INCLUDED_CREDITS, binds![plan]).await?;
    Ok(row.map_or(0, |(credits,)| credits))
}

async fn refund(
    tx: &mut Tx,
    event: &Event,
    invoice: Option<String>,
    now: Time,
) -> Result<Verdict, StoreError> {
    let charge = &event.object;
    let (Some(id), Some(amount_cents)) =
        (charge.id("id"), charge.cents("amount_refunded").filter(|cents| *cents > 0))
    else {
        return Ok(ignored("nothing was refunded"));
    };
    let payment = Payment {
        intent: charge.id("payment_intent"),
        charge: Some(id.clone()),
        invoice: charge.id("invoice").or(invoice),
    };
    let reversal =
        Reversal { id, payment, amount_cents, status: ReversalStatus::Refunded, at: event.created_at };
    // All that we sell has a customer of ours; what an app took from one of its own is known by its grant.
    if let Some(customer) = charge.id("customer")
        && !purchase::is_customer(tx, &customer).await?
        && !wallet::verified_any(tx, &reversal.payment).await?
    {
        // It may have been verified before this refund, and be booked after it.
        if !wallet::paid_for_any(tx, &reversal.payment).await? {
            wallet::note(tx, &reversal).await?;
        }
        return Ok(ignored("its customer is none of ours"));
    }
    reverse(tx, &reversal, event, now).await
}

async fn dispute(
    tx: &mut Tx,
    event: &Event,
    invoice: Option<String>,
    now: Time,
) -> Result<Verdict, StoreError> {
    let dispute = &event.object;
    let (Some(id), Some(amount_cents)) =
        (dispute.id("id"), dispute.cents("amount").filter(|cents| *cents > 0))
    else {
        return Ok(ignored("nothing is disputed"));
    };
    let status = match dispute.text("status") {
        Some("won" | "warning_closed" | "prevented") => ReversalStatus::Won,
        Some("lost") => ReversalStatus::Lost,
        _ if event.kind == "charge.dispute.created" => ReversalStatus::Open,
        _ => return Ok(kept("a dispute was closed without an end that is known")),
    };
    let payment = Payment { intent: dispute.id("payment_intent"), charge: dispute.id("charge"), invoice };
    let reversal = Reversal { id, payment, amount_cents, status, at: event.created_at };
    reverse(tx, &reversal, event, now).await
}

async fn reverse(tx: &mut Tx, reversal: &Reversal, event: &Event, now: Time) -> Result<Verdict, StoreError> {
    Ok(match wallet::reverse(tx, reversal, &event.id, now).await? {
        true => applied("what the money paid for was adjusted"),
        false => kept("nothing that was granted is known to be paid by it"),
    })
}
