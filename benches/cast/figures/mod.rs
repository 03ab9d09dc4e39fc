//! What the measurements are boiled down to, and how it is written: numbers in, text out.

mod growth;
mod spread;
mod table;

pub use growth::{Growth, Sample};
pub use spread::{Spread, percentile};
pub use table::{Table, decimals, grouped, ratio, whole};
