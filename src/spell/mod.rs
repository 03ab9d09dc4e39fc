//! Spells: what can be cast for a price, and how each kind of them is run.

pub mod upstream;
