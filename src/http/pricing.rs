//! `/api/billing/pricing`: what tokens of each model cost. Open to all; admins and other services
//! change it. Errors are in the shape of [`super::wallet`].

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};

use super::{
    AppState,
    caller::Admin,
    error::{ApiError, Code},
    extract::{Body, NoQuery},
};
use crate::{
    clock::Time,
    wallet::pricing::{self, Change, Price, Stated, could_be_model},
};

/// The most of a model's past that is shown.
const MAX_SHOWN: i64 = 1_000;

#[derive(Deserialize)]
pub struct PutPrice {
    price_per_m_token: i64,
    category: String,
}

/// A model's price as it goes out.
#[derive(Serialize)]
struct PriceView<'a> {
    model_id: &'a str,
    #[serde(flatten)]
    price: Price,
    updated_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<&'a [Stated]>,
}

impl<'a> PriceView<'a> {
    fn new(model_id: &'a str, stated: &Stated) -> PriceView<'a> {
        PriceView { model_id, price: stated.price, updated_at: stated.created_at, history: None }
    }
}

/// `GET /api/billing/pricing`
pub async fn list(state: web::Data<AppState>, _: NoQuery) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(pricing::prices(&state.db).await?))
}

/// `GET /api/billing/pricing/{model}`, with what it cost before, the newest first.
pub async fn get(
    state: web::Data<AppState>,
    model: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    let history = pricing::history(&state.db, &model, MAX_SHOWN).await?;
    let no_price = || ApiError::new(Code::NotFound, "There is no price for that model.");
    let current = PriceView::new(&model, history.first().ok_or_else(no_price)?);
    Ok(HttpResponse::Ok().json(PriceView { history: Some(&history), ..current }))
}

/// `PUT /api/billing/pricing/{model}`: 201 for a model's first price, 200 for another one.
pub async fn put(
    state: web::Data<AppState>,
    _: Admin,
    model: web::Path<String>,
    _: NoQuery,
    body: Body<PutPrice>,
) -> Result<HttpResponse, ApiError> {
    if !could_be_model(&model) {
        return Err(ApiError::invalid("A model's name has 1 to 200 bytes and no control characters."));
    }
    let PutPrice { price_per_m_token, category } = body.value;
    let price = Price::new(price_per_m_token, &category).map_err(ApiError::invalid)?;
    match pricing::put(&state.db, &model, price, state.clock.now()).await? {
        Change::Made(stated) => Ok(HttpResponse::Created().json(PriceView::new(&model, &stated))),
        Change::Replaced(stated) | Change::Unchanged(stated) => {
            Ok(HttpResponse::Ok().json(PriceView::new(&model, &stated)))
        }
    }
}
