//! `/api/billing`: credits turned into tokens of models, and tokens consumed. Errors are in the shape of
//! [`super::wallet`], their figures in the sentence.

use std::collections::BTreeSet;

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    AppState,
    caller::{Admin, named_account},
    error::{ApiError, Code},
    extract::{Body, NoQuery, OptionalBody, Page, Query},
};
use crate::{
    id::AccountId,
    identity::{Caller, KeyScope, could_be_user},
    wallet::{
        self, Allocation, Refused,
        pricing::{self, Category},
        purchase::{self, Booked, Owner, Paid, Unverified},
        transactions,
    },
};

/// What may turn credits into tokens and consume them, besides the wallet's owner.
const SPENDING: &[KeyScope] = &[KeyScope::Billing, KeyScope::Cast];

/// The most credits that are added at once.
const MAX_CREDITS: i64 = 1_000_000_000;

/// The most allocations in one list.
const MAX_ALLOCATIONS: usize = 100;

#[derive(Deserialize)]
pub struct AllocateBody {
    allocations: Vec<AllocationBody>,
}

#[derive(Deserialize)]
struct AllocationBody {
    model_id: String,
    credits: i64,
}

#[derive(Deserialize)]
pub struct AddBody {
    credits: i64,
    /// With whatever else its provider put into it.
    purchase_record: Map<String, Value>,
    user_id: Option<String>,
}

#[derive(Deserialize)]
pub struct ConsumeBody {
    model_id: String,
    input_tokens: i64,
    output_tokens: i64,
}

#[derive(Deserialize)]
pub struct PageQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
pub struct ResetBody {
    user_id: Option<String>,
}

/// `GET /api/billing/balance/category/{category}`
pub async fn category(
    state: web::Data<AppState>,
    caller: Caller,
    category: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Read)?;
    let category = Category::parse(&category)
        .ok_or_else(|| ApiError::invalid("The category must be quick or think."))?;
    let prices = pricing::prices(&state.db).await?;
    let held = wallet::held(&state.db, &caller.account).await?;
    let of_it = held
        .tokens
        .iter()
        .filter(|(model, _)| prices.get(*model).is_some_and(|price| price.category == category));
    let total = of_it.fold(0, |sum: i64, (_, tokens)| sum.saturating_add(*tokens));
    Ok(HttpResponse::Ok().json(json!({ "category": category, "total_tokens": total })))
}

/// `POST /api/billing/credits/allocate`
pub async fn allocate(
    state: web::Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    _: NoQuery,
    body: Body<AllocateBody>,
) -> Result<HttpResponse, ApiError> {
    caller.require_any(SPENDING)?;
    let allocations = allocations(body.value)?;
    let prices = pricing::prices(&state.db).await?;
    let (price, now) = (state.config.billing.credit_price, state.clock.now());
    let allocated = wallet::allocate(&state.ledger, &caller.account, &allocations, &prices, price, now);
    allocated.await?.map_err(|refused| refusal(&refused, &request))?;
    let credits: i64 = allocations.iter().map(|allocation| allocation.credits).sum();
    let models: BTreeSet<&str> = allocations.iter().map(|allocation| allocation.model.as_str()).collect();
    let message = format!("Successfully allocated {credits} credits to {} model(s)", models.len());
    Ok(HttpResponse::Ok().json(json!({ "success": true, "message": message })))
}

/// `POST /api/billing/credits/add`: from an admin or another service what they say, from others what the
/// purchase's provider vouches for.
pub async fn add(
    state: web::Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    _: NoQuery,
    body: Body<AddBody>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Billing)?;
    let AddBody { credits, purchase_record, user_id } = body.value;
    if !(1..=MAX_CREDITS).contains(&credits) {
        return Err(ApiError::invalid(format!(
            "`credits` must be from 1 to {MAX_CREDITS}, and is {credits}."
        )));
    }
    let account = named_user(&state, &caller, &request, user_id.as_deref()).await?;
    let record = purchase::Record::read(&purchase_record).map_err(ApiError::invalid)?;
    let paid = match caller.is_admin() {
        true => Paid {
            transaction_id: record.transaction_id.clone(),
            product_id: record.product_id.clone(),
            credits,
            verified_by: if caller.service { "service" } else { "admin" },
            payment: wallet::Payment::default(),
            amount_cents: 0,
        },
        false => {
            if purchase::is_known(&state.db, &record.transaction_id).await? {
                return Err(Code::PurchaseKnown.into());
            }
            let owner = caller.user().map_or(Owner::Account(caller.account.as_str()), Owner::User);
            state.purchases.verify(&record, credits, owner).await?.into()
        }
    };
    let price = state.config.billing.credit_price;
    match purchase::book(&state.db, &account, &paid, price, state.clock.now()).await? {
        Booked::Added => {}
        Booked::Known => return Err(Code::PurchaseKnown.into()),
        Booked::OutOfRange => return Err(refusal(&Refused::OutOfRange, &request)),
    }
    if !caller.is_admin() {
        state.purchases.settle(&record).await;
    }
    let balance = wallet::credits(&state.db, &account).await?.available.0 / price.0;
    Ok(HttpResponse::Ok().json(json!({ "success": true, "new_balance": balance })))
}

impl From<Unverified> for ApiError {
    fn from(unverified: Unverified) -> ApiError {
        let code = match &unverified {
            Unverified::Mismatch(_) => Code::InvalidRequest,
            Unverified::Unavailable(_) => Code::ProviderUnavailable,
            Unverified::NotVerifiable | Unverified::SwitchedOff(_) | Unverified::Invalid(_) => {
                Code::Forbidden
            }
        };
        ApiError::new(code, unverified.to_string())
    }
}

fn allocations(body: AllocateBody) -> Result<Vec<Allocation>, ApiError> {
    let AllocateBody { allocations } = body;
    if !(1..=MAX_ALLOCATIONS).contains(&allocations.len()) {
        return Err(ApiError::invalid(format!("`allocations` must name 1 to {MAX_ALLOCATIONS} models.")));
    }
    let checked =
        allocations.into_iter().enumerate().map(|(at, AllocationBody { model_id, credits })| match credits {
            1.. => Ok(Allocation { model: model_id, credits }),
            _ => Err(ApiError::invalid(format!(
                "`allocations[{at}].credits` must be at least 1, and is {credits}."
            ))),
        });
    checked.collect()
}

/// `POST /api/billing/tokens/consume`
pub async fn consume(
    state: web::Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    _: NoQuery,
    body: Body<ConsumeBody>,
) -> Result<HttpResponse, ApiError> {
    caller.require_any(SPENDING)?;
    let ConsumeBody { model_id, input_tokens, output_tokens } = body.value;
    let tokens = match (input_tokens, output_tokens) {
        (0.., 0..) => input_tokens.checked_add(output_tokens),
        _ => None,
    };
    let tokens = tokens.filter(|tokens| *tokens > 0).ok_or_else(|| {
        ApiError::invalid(format!(
            "`input_tokens` and `output_tokens` must not be negative, and together at least 1; they are \
             {input_tokens} and {output_tokens}."
        ))
    })?;
    let consumed =
        wallet::consume(&state.ledger, &caller.account, &model_id, tokens, state.clock.now()).await?;
    let left = match consumed {
        Ok(left) => left,
        Err(refused) => {
            // Of a model that was never sold nobody has tokens: then it is the model that is wrong.
            let known = pricing::prices(&state.db).await?.contains_key(&model_id);
            let refused = if known { refused } else { Refused::UnknownModel(model_id) };
            return Err(refusal(&refused, &request));
        }
    };
    Ok(HttpResponse::Ok().json(json!({ "success": true, "remaining_tokens": left })))
}

/// `GET /api/billing/transactions`
pub async fn list(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<PageQuery>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Read)?;
    let page = Page::new(query.limit.as_deref(), query.cursor, "")?;
    let before = page.cursor.as_deref().map(|cursor| match cursor.parse() {
        Ok(id @ 1..) => Ok(id),
        _ => Err(ApiError::invalid("`cursor` is none that a list gave out.")),
    });
    let lines = transactions::list(&state.db, &caller.account, before.transpose()?, page.limit + 1).await?;
    let mut answer = page.answer(lines, |line| line.id.to_string());
    let lines = answer["data"].take();
    Ok(HttpResponse::Ok().json(json!({ "transactions": lines, "next_cursor": answer["next_cursor"] })))
}

/// `POST /api/billing/reset`
pub async fn reset(
    state: web::Data<AppState>,
    Admin(caller): Admin,
    request: HttpRequest,
    _: NoQuery,
    body: OptionalBody<ResetBody>,
) -> Result<HttpResponse, ApiError> {
    if !state.config.allow_wallet_reset {
        let message = "Wallets can't be emptied on this server: ALLOW_WALLET_RESET is not true.";
        return Err(ApiError::new(Code::Forbidden, message));
    }
    let account = named_user(&state, &caller, &request, body.value.user_id.as_deref()).await?;
    wallet::reset(&state.db, &account, state.clock.now()).await?;
    Ok(HttpResponse::Ok().json(json!({ "success": true })))
}

/// The account of the user whom an admin names, or the caller's.
async fn named_user(
    state: &AppState,
    caller: &Caller,
    request: &HttpRequest,
    user_id: Option<&str>,
) -> Result<AccountId, ApiError> {
    let by_account = named_account(request.query_string())?.is_some();
    let Some(user_id) = user_id else {
        // A service has no wallet of its own.
        return match caller.service && !by_account {
            true => {
                Err(ApiError::new(Code::Forbidden, "Name the wallet by `user_id`, or by `?account_id=`."))
            }
            false => Ok(caller.account.clone()),
        };
    };
    if !caller.is_admin() {
        return Err(ApiError::new(Code::Forbidden, "Only an admin or another service may name a `user_id`."));
    }
    if by_account {
        return Err(ApiError::invalid("Name either a `user_id` or an `?account_id=`."));
    }
    match could_be_user(user_id) {
        true => Ok(state.identity.account_of_user(user_id).await?),
        false => Err(ApiError::invalid("`user_id` must be 1 to 255 bytes without control characters.")),
    }
}

fn refusal(refused: &Refused, request: &HttpRequest) -> ApiError {
    ApiError::invalid(match refused {
        Refused::UnknownModel(model) => {
            let named: String = model.chars().take(200).collect();
            format!("Unknown model: {named}")
        }
        Refused::NoToken { model, credits } => {
            format!("{credits} credits are too few for a token of {model}.")
        }
        Refused::InsufficientCredits { required, balance } if prefers_japanese(request) => {
            format!("クレジットが不足しています。必要: {required}P, 残高: {balance}P")
        }
        Refused::InsufficientCredits { required, balance } => {
            format!("Insufficient credits. Required: {required}P, balance: {balance}P")
        }
        Refused::InsufficientTokens { model, required, available } => {
            format!("Insufficient tokens of {model}. Required: {required}, available: {available}")
        }
        Refused::OverCapacity { category, held, asked, capacity } => format!(
            "Over the capacity of {} tokens. Held: {held}, asked for: {asked}, capacity: {capacity}",
            category.as_str()
        ),
        Refused::Suspended => return Code::AccountSuspended.into(),
        Refused::OutOfRange => "The amounts would not fit the account's totals.".to_owned(),
    })
}

/// Whether the language that the caller likes best is Japanese.
fn prefers_japanese(request: &HttpRequest) -> bool {
    let header = request.headers().get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
    let liked = header.unwrap_or_default().split(',').map(|range| {
        let (tag, weight) = range.split_once(";q=").unwrap_or((range, "1"));
        (tag.trim(), weight.trim().parse::<f64>().unwrap_or(0.0))
    });
    // The first of those that are liked equally.
    let best = liked.fold(("", 0.0), |best, next| if next.1 > best.1 { next } else { best });
    let primary = best.0.split('-').next().unwrap_or_default();
    primary.eq_ignore_ascii_case("ja")
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    #[test]
    fn the_language_that_is_liked_best_decides() {
        for (header, japanese) in [
            ("ja", true),
            ("ja-JP,ja;q=0.9,en;q=0.8", true),
            ("en, ja", false),
            ("en;q=0.5, ja;q=0.7", true),
            ("ja;q=0", false),
            ("", false),
            ("jav", false),
            ("ja;q=x", false),
        ] {
            let request = TestRequest::default().insert_header((header::ACCEPT_LANGUAGE, header));
            assert_eq!(prefers_japanese(&request.to_http_request()), japanese, "{header:?}");
        }
    }
}
