//! How many file descriptors a process may have: the kernel's limit has a soft half, which is small by custom and which each
//! process may raise, and a hard one.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Lets this process, and those that it starts, have as many descriptors as it may.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If not, what there is has to do.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
