use serde_json::Value;
use spell_platform::{
    clock::Time,
    json::{self, Source},
    payment::order::{PaidOrder, same_amount},
    stripe::event::{Event, HANDLED, Object},
};

const NOW: Time = Time(1_700_000_000_000);

/// The fields of Stripe's objects that an effect looks at, and where they may stand.
const PATHS: [&str; 16] = [
    "id",
    "customer",
    "subscription",
    "invoice",
    "payment_intent",
    "charge",
    "amount",
    "amount_total",
    "amount_refunded",
    "currency",
    "status",
    "current_period_end",
    "lines/data",
    "items/data",
    "metadata/purchase_id",
    "parent/subscription_details/subscription",
];

/// The bytes are a delivery's body, of Stripe or of the payment service.
pub fn webhook_body(data: &[u8]) {
    of_stripe(data);
    of_the_payment_service(data);
}

fn of_stripe(body: &[u8]) {
    let Ok(event) = Event::parse(body, NOW) else { return };
    assert!((1..=255).contains(&event.id.len()) && event.id.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!((1..=255).contains(&event.kind.len()) && !event.kind.contains('\0'));
    assert!(event.created_at == NOW || (0..=253_402_300_799_000).contains(&event.created_at.0));
    assert!(event.label() == "other" || HANDLED.contains(&event.kind.as_str()));
    look(&event.object);

    // However it is written down, it is the same event.
    let value = json::parse(body, Source::Upstream).unwrap();
    for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
        let again = Event::parse(text.as_bytes(), NOW).unwrap();
        assert_eq!(
            (again.id, again.kind, again.created_at, format!("{:?}", again.object)),
            (event.id.clone(), event.kind.clone(), event.created_at, format!("{:?}", event.object))
        );
    }
}

fn look(object: &Object) {
    for path in PATHS {
        if let Some(text) = object.text(path) {
            assert!((1..=255).contains(&text.len()) && !text.contains('\0'));
            assert_eq!(object.id(path).as_deref(), Some(text));
        }
        if let Some(cents) = object.cents(path) {
            assert!((0..=1_000_000_000_000).contains(&cents));
            assert_eq!(object.int(path), Some(cents));
        }
        if let Some(at) = object.time(path) {
            assert_eq!(object.int(path), Some(at.0 / 1_000));
        }
        if let Some(currency) = object.currency(path) {
            assert!(!currency.bytes().any(|byte| byte.is_ascii_uppercase()));
        }
        assert!(!object.is_true(path) || object.int(path).is_none());
        for item in object.list(path) {
            let _ = (item.id("price"), item.cents("amount"), item.text("id"));
        }
    }
}

fn of_the_payment_service(body: &[u8]) {
    let Ok(paid) = PaidOrder::parse(body) else { return };
    let value = json::parse(body, Source::Caller).unwrap();
    let plain =
        |text: &str, most: usize| (1..=most).contains(&text.len()) && !text.chars().any(char::is_control);
    assert!(plain(&paid.order.order_id, 200) && plain(&paid.user_id, 255));
    assert_eq!(value["order_id"], paid.order.order_id.as_str());
    assert_eq!(value["units_chat"].to_string(), paid.order.units_chat.to_string());
    assert_eq!(value["units_tpl"].to_string(), paid.order.units_tpl.to_string());
    let payment = paid.order.payment.as_ref().unwrap();
    assert_eq!(payment.status, "succeeded");
    assert!(payment.currency.len() == 3 && payment.currency.bytes().all(|byte| byte.is_ascii_lowercase()));
    assert!(same_amount(&payment.amount, &payment.amount));

    // What was understood, written down again, is understood as the same.
    let with = |field: &str, content: Value| {
        let mut body = value.clone();
        body[field] = content;
        PaidOrder::parse(body.to_string().as_bytes())
    };
    assert_eq!(with("amount", Value::from(payment.amount.as_str())).as_ref(), Ok(&paid));
    assert_eq!(with("currency", Value::from(payment.currency.as_str())).as_ref(), Ok(&paid));
    // Fields that nobody asks for may be anything; what is credited may not.
    assert_eq!(with("another field", Value::from(7)).as_ref(), Ok(&paid));
    for (field, wrong) in [("payment_status", Value::from("failed")), ("units_chat", Value::from(-1))] {
        assert!(with(field, wrong).is_err());
    }
}
