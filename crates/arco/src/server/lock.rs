//! One server per data dir.

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a lock is waited for whose server is dead: a child that it was just starting still holds it.
const PASSING: Duration = Duration::from_secs(10);
/// Between attempts.
const PACE: Duration = Duration::from_millis(20);

/// Held while the server lives; the kernel releases it with the process.
pub(crate) struct Lock(#[expect(dead_code, reason = "held, never read")] Flock<File>);

/// Takes the lock of a data dir, or says who has it.
pub(crate) fn take(data_dir: &Path) -> anyhow::Result<Lock> {
    let path = data_dir.join("lock");
    let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.with_context(|| format!("failed to open `{}`", path.display()))?;
    let end = Instant::now() + PASSING;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                lock.rewind()?;
                writeln!(lock, "{}", std::process::id())?;
                return Ok(Lock(lock));
            }
            Err((held, _)) => file = held,
        }
        let mut pid = String::new();
        file.rewind()?;
        let _ = file.read_to_string(&mut pid);
        let pid = pid.trim();
        if is_alive(pid) || Instant::now() >= end {
            anyhow::bail!(
                "a server with the data dir `{}` runs already (process {pid})\n  stop it with `kill {pid}`, or give another `--data-dir`",
                data_dir.display(),
            )
        }
        std::thread::sleep(PACE);
    }
}

fn is_alive(pid: &str) -> bool {
    pid.parse::<u32>().is_ok_and(|pid| Path::new("/proc").join(pid.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_outlives_its_server_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path()).unwrap();
        let refused = take(dir.path()).err().unwrap().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        // No process has this number (beyond the kernel's largest).
        std::fs::write(dir.path().join("lock"), "4194999\n").unwrap();
        let holder = std::thread::spawn(move || drop(first));
        assert!(take(dir.path()).is_ok());
        holder.join().unwrap();
    }
}
