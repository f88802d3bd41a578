//! Random choices that can be repeated: seeded by `ARCO_SEED`, printed when not given.

/// A small generator (splitmix64); good enough to choose moments, not secrets.
pub struct Random(u64);

impl Random {
    /// Seeded by `ARCO_SEED`, else by the time; the seed is printed so that a failure can be repeated.
    pub fn seeded() -> Self {
        let now =
            || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |it| it.as_nanos() as u64);
        let seed = std::env::var("ARCO_SEED").ok().and_then(|it| it.parse().ok()).unwrap_or_else(now);
        eprintln!("repeat this run with ARCO_SEED={seed}");
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end` (at least 1).
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end.max(1)
    }
}
