//! Memory that the program has freed goes back to the system. The C library keeps it for what comes next: after thousands of
//! objects were read, a process is as large as it was while it read them.

use std::time::Duration;

/// How often [`give_back_at_times`] does it.
const PERIOD: Duration = Duration::from_secs(30);

/// Gives memory that is free again back to the system; takes some milliseconds for each hundred megabytes.
pub fn give_back() {
    // Other libraries have allocators without such a call.
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and works on what is free only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives back every half minute, without an end.
pub async fn give_back_at_times() {
    loop {
        tokio::time::sleep(PERIOD).await;
        // Who runs tasks does not wait for it.
        let _ = tokio::task::spawn_blocking(give_back).await;
    }
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use super::*;

    /// KiB of this process that are in memory (`proc(5)`).
    fn resident() -> u64 {
        let found = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = found.lines().find_map(|it| it.strip_prefix("VmRSS:")).unwrap();
        size.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    #[test]
    fn what_is_free_below_what_is_used_goes_back() {
        let mut blocks: Vec<Box<[u8]>> = (0..32_768_u32).map(|it| vec![it.to_le_bytes()[0]; 2048].into()).collect();
        let used = resident();
        let last = blocks.pop();
        drop(blocks);
        give_back();
        let left = resident();
        assert!(left + (48 << 10) < used, "{used} KiB before, {left} after");
        drop(last);
    }
}
