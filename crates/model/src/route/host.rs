//! Host names of routes (RFC 1123 §2.1).

/// Why a text is not a host of a route.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is not a host: write `name.example.com`, `*.example.com` or `*`, without a port")]
pub struct HostError(String);

/// Checks a host: a name, an address, `*.suffix`, or `*`. Names are labels of 1 to 63 of a-z, 0-9, `-`, `_`.
pub fn check_host(host: &str) -> Result<(), HostError> {
    let name = if host == "*" { return Ok(()) } else { host.strip_prefix("*.").unwrap_or(host) };
    let label = |it: &str| {
        (1..=63).contains(&it.len())
            && !it.starts_with('-')
            && !it.ends_with('-')
            && it.bytes().all(|it| it.is_ascii_alphanumeric() || b"-_".contains(&it))
    };
    let bracketed = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let address = bracketed.unwrap_or(host).parse::<std::net::IpAddr>().is_ok();
    if address || (host.len() <= 253 && name.split('.').all(label)) {
        Ok(())
    } else {
        Err(HostError(host.chars().take(80).collect()))
    }
}
