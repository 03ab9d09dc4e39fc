//! The fuzz targets' properties, over their corpus and over mutations of it: what `scripts/fuzz` does at
//! length, without its tools.

use std::{fs, panic, path::Path};

#[path = "../fuzz/src/lib.rs"]
mod properties;

/// How many mutations of the corpus a test tries.
const MUTATIONS: u64 = 4_000;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % sides.max(1) as u64) as usize
    }

    /// A seed with something in it changed, doubled, dropped or taken from another seed.
    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[self.roll(seeds.len())].clone();
        for _ in 0..=self.roll(4) {
            let (from, to) = (self.roll(data.len() + 1), self.roll(data.len() + 1));
            let (from, to) = (from.min(to), from.max(to));
            match self.roll(6) {
                0 => drop(data.drain(from..to)),
                1 => drop(data.splice(from..from, data[from..to].to_vec())),
                2 => {
                    let other = &seeds[self.roll(seeds.len())];
                    let part = other[self.roll(other.len() + 1)..].to_vec();
                    data.splice(from..to, part);
                }
                3 => {
                    let tokens: [&[u8]; 12] = [
                        b"{", b"}", b"[", b"]", b",", b"\"", b"\\u0000", b"1e400", b"-0", b".", b"=", b"null",
                    ];
                    data.splice(from..from, tokens[self.roll(tokens.len())].to_vec());
                }
                _ if data.is_empty() => {}
                _ => {
                    let at = self.roll(data.len());
                    data[at] =
                        if self.roll(2) == 0 { data[at] ^ (1 << self.roll(8)) } else { self.roll(256) as u8 };
                }
            }
        }
        data
    }
}

fn hold_over_corpus(target: &str, property: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(seeds.len() > 3, "{target} has no seeds");
    let mut dice = Dice(1);
    let mutated = (0..MUTATIONS).map(|_| dice.mutate(&seeds)).collect::<Vec<_>>();
    for data in seeds.iter().chain(&mutated) {
        if let Err(panic) = panic::catch_unwind(|| property(data)) {
            eprintln!("{target} fails on {:?}", String::from_utf8_lossy(data));
            panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_signature_is_believed_only_if_it_is_right() {
    hold_over_corpus("stripe_signature", properties::stripe_signature);
}

#[test]
fn a_webhooks_body_is_read_in_one_way() {
    hold_over_corpus("webhook_body", properties::webhook_body);
}

#[test]
fn a_casts_body_is_read_as_it_stands() {
    hold_over_corpus("cast_body", properties::cast_body);
}

#[test]
fn money_is_exact() {
    hold_over_corpus("money", properties::money);
}
