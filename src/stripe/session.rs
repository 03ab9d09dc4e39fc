//! What Stripe is told of a purchase: a Checkout session, as its typed builder makes one.

use std::collections::HashMap;

use stripe_checkout::{
    CheckoutSessionMode,
    checkout_session::{
        CreateCheckoutSession, CreateCheckoutSessionLineItems, CreateCheckoutSessionLineItemsPriceData,
        CreateCheckoutSessionLineItemsPriceDataRecurring,
        CreateCheckoutSessionLineItemsPriceDataRecurringInterval as Every,
        CreateCheckoutSessionPaymentIntentData, CreateCheckoutSessionSubscriptionData, ProductData,
    },
};

use super::checkout::{Draft, Item, Order};
use crate::plan::Interval;

/// The session in which the purchase is paid. The purchase's id is on everything that comes of it,
/// so that an event about any of it leads back.
pub(super) fn request(purchase: &Draft, order: &Order) -> CreateCheckoutSession {
    let metadata = HashMap::from([("purchase_id".to_owned(), purchase.id.to_string())]);
    let session = CreateCheckoutSession::new()
        .customer(&purchase.customer)
        .client_reference_id(purchase.id.as_str())
        .line_items([line_item(purchase, &order.sale.item)])
        .metadata(metadata.clone())
        .success_url(&order.success_url)
        .cancel_url(&order.cancel_url);
    match order.sale.item {
        Item::Plan { .. } => session.mode(CheckoutSessionMode::Subscription).subscription_data(
            CreateCheckoutSessionSubscriptionData { metadata: Some(metadata), ..Default::default() },
        ),
        Item::Credits(_) => session.mode(CheckoutSessionMode::Payment).payment_intent_data(
            CreateCheckoutSessionPaymentIntentData { metadata: Some(metadata), ..Default::default() },
        ),
    }
}

fn line_item(purchase: &Draft, item: &Item) -> CreateCheckoutSessionLineItems {
    let (name, every) = match item {
        Item::Plan { stripe_price_id: Some(price), .. } => {
            return CreateCheckoutSessionLineItems {
                price: Some(price.clone()),
                quantity: Some(1),
                ..Default::default()
            };
        }
        Item::Plan { name, interval, .. } => (name.clone(), Some(every(*interval))),
        Item::Credits(1) => ("1 credit".to_owned(), None),
        Item::Credits(credits) => (format!("{credits} credits"), None),
    };
    let Ok(currency) = purchase.currency.parse();
    let price = CreateCheckoutSessionLineItemsPriceData {
        currency,
        product: None,
        product_data: Some(ProductData::new(name)),
        recurring: every.map(CreateCheckoutSessionLineItemsPriceDataRecurring::new),
        tax_behavior: None,
        unit_amount: Some(purchase.amount_cents),
        unit_amount_decimal: None,
    };
    CreateCheckoutSessionLineItems { price_data: Some(price), quantity: Some(1), ..Default::default() }
}

fn every(interval: Interval) -> Every {
    match interval {
        Interval::Day => Every::Day,
        Interval::Week => Every::Week,
        Interval::Month => Every::Month,
        Interval::Year => Every::Year,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::Nanos;
    use crate::stripe::Sale;
    use stripe::StripeRequest;

    /// The fields that are sent, in order.
    fn fields(item: Item) -> String {
        let sale = Sale {
            item,
            amount_cents: 1_000,
            currency: "eur".to_owned(),
            credit_value: Nanos(1),
            included_credits: 0,
        };
        let purchase = Draft {
            id: "pur_1".into(),
            customer: "cus_1".to_owned(),
            amount_cents: 1_000,
            currency: "eur".to_owned(),
        };
        let order = Order {
            account: "acct_1".into(),
            sale,
            success_url: "https://a.example/?id={CHECKOUT_SESSION_ID}".to_owned(),
            cancel_url: "https://a.example/no".to_owned(),
            keyed: None,
        };
        let built = request(&purchase, &order).build();
        assert_eq!(built.path, "/checkout/sessions");
        let fields: Vec<(String, String)> =
            serde_urlencoded::from_str(built.body.as_deref().unwrap()).unwrap();
        let mut fields: Vec<String> =
            fields.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        fields.sort();
        fields.join("\n")
    }

    fn pro(stripe_price_id: Option<&str>) -> Item {
        Item::Plan {
            code: "pro".to_owned(),
            name: "Pro & more".to_owned(),
            interval: Interval::Month,
            stripe_price_id: stripe_price_id.map(str::to_owned),
        }
    }

    #[test]
    fn a_plan_is_a_subscription_at_the_price_that_is_stated() {
        insta::assert_snapshot!(fields(pro(None)), @r"
        cancel_url=https://a.example/no
        client_reference_id=pur_1
        customer=cus_1
        line_items[0][price_data][currency]=eur
        line_items[0][price_data][product_data][name]=Pro & more
        line_items[0][price_data][recurring][interval]=month
        line_items[0][price_data][unit_amount]=1000
        line_items[0][quantity]=1
        metadata[purchase_id]=pur_1
        mode=subscription
        subscription_data[metadata][purchase_id]=pur_1
        success_url=https://a.example/?id={CHECKOUT_SESSION_ID}
        ");
    }

    #[test]
    fn a_plan_with_a_price_at_stripe_is_sold_at_that() {
        insta::assert_snapshot!(fields(pro(Some("price_1"))), @r"
        cancel_url=https://a.example/no
        client_reference_id=pur_1
        customer=cus_1
        line_items[0][price]=price_1
        line_items[0][quantity]=1
        metadata[purchase_id]=pur_1
        mode=subscription
        subscription_data[metadata][purchase_id]=pur_1
        success_url=https://a.example/?id={CHECKOUT_SESSION_ID}
        ");
    }

    #[test]
    fn credits_are_one_payment() {
        insta::assert_snapshot!(fields(Item::Credits(1_000)), @r"
        cancel_url=https://a.example/no
        client_reference_id=pur_1
        customer=cus_1
        line_items[0][price_data][currency]=eur
        line_items[0][price_data][product_data][name]=1000 credits
        line_items[0][price_data][unit_amount]=1000
        line_items[0][quantity]=1
        metadata[purchase_id]=pur_1
        mode=payment
        payment_intent_data[metadata][purchase_id]=pur_1
        success_url=https://a.example/?id={CHECKOUT_SESSION_ID}
        ");
        assert!(fields(Item::Credits(1)).contains("[name]=1 credit\n"));
    }
}
