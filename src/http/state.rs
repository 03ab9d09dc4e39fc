//! What every handler may use.

use std::sync::Arc;

use crate::{
    cast::Pipeline,
    clock::Clock,
    config::Config,
    identity::{Identity, jwt},
    ledger::Ledger,
    rate::Limiter,
    spell::Spells,
    store::Db,
    stripe::Stripe,
    telemetry::Metrics,
    wallet::purchase,
    webhooks::Webhooks,
};

pub struct AppState {
    pub config: Config,
    pub clock: Clock,
    pub db: Db,
    pub metrics: Arc<Metrics>,
    pub ledger: Ledger,
    pub limiter: Limiter,
    pub identity: Identity,
    pub tokens: jwt::Verifier,
    pub spells: Spells,
    pub pipeline: Pipeline,
    /// `None`: nothing can be bought.
    pub stripe: Option<Stripe>,
    pub webhooks: Webhooks,
    pub purchases: purchase::Verifier,
}
