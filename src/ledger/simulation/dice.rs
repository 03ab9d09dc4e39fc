//! What is drawn from a seed: the dice, and how rough a schedule is.

use std::time::Duration;

/// The same numbers for the same seed (SplitMix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of 0 to `sides` − 1.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.next() % sides.max(1)
    }

    /// One of `from` to `to`, both included.
    pub fn between(&mut self, from: i64, to: i64) -> i64 {
        from + self.roll((to - from + 1).unsigned_abs()) as i64
    }

    pub fn chance(&mut self, in_a_thousand: u64) -> bool {
        self.roll(1_000) < in_a_thousand
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len() as u64) as usize]
    }

    /// Up to `most` milliseconds.
    pub fn ms(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.roll(most + 1))
    }

    /// Dice of their own, for who is to draw the same whatever others draw.
    pub fn fork(&mut self) -> Dice {
        Dice(self.next())
    }
}

/// How rough a schedule is.
#[derive(Debug)]
pub struct Temper {
    pub replicas: usize,
    pub clients: usize,
    /// How often each client asks, with one request or several at once.
    pub rounds: u64,
    pub accounts: u64,
    /// Of a thousand calls to the database, those that go wrong.
    pub faults: u64,
    /// Of a thousand calls that go wrong, those that their process dies of.
    pub deadly: u64,
    /// How long the database is away, now and then; nothing: never.
    pub outages: Duration,
    /// How far the clocks of replicas may be from each other, in milliseconds.
    pub skew: i64,
    /// Of a thousand rounds, those after which it is suddenly another day.
    pub jumps: u64,
    /// Of a thousand requests, those that are drawn as plain charges of one kind, as most are in use: what a lane
    /// knows is of use only then.
    pub plain: u64,
}

impl Temper {
    pub fn drawn(dice: &mut Dice) -> Temper {
        Temper {
            replicas: dice.between(1, 3) as usize,
            clients: dice.between(2, 4) as usize,
            rounds: 3 + dice.roll(6),
            accounts: 1 + dice.roll(2),
            faults: *dice.pick(&[0, 10, 30, 30, 80, 150]),
            deadly: *dice.pick(&[0, 0, 100, 300]),
            outages: Duration::from_millis(*dice.pick(&[0, 0, 1_000, 4_000, 20_000])),
            skew: *dice.pick(&[0, 50, 5_000]),
            jumps: *dice.pick(&[0, 50, 200]),
            plain: *dice.pick(&[0, 0, 500, 950]),
        }
    }
}
