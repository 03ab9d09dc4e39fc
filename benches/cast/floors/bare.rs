//! Bare actix-web: it checks nothing and keeps nothing.

use actix_web::web;
use serde_json::Value;

use super::serve;
use crate::load::{Measured, Pace, load};

pub async fn measure(pace: Pace) -> Measured {
    let serving = serve(|routes| {
        routes.route("/v1/cast", web::post().to(|body: web::Json<Value>| async { body }));
    });
    let measured = load(&[serving.address], &["1".to_owned()], pace).await;
    serving.handle.stop(false).await;
    measured
}
