//! A process that ends with the test that started it.

use std::process::Child;

/// Killed when it goes, so that nothing is left of a test that fails.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
