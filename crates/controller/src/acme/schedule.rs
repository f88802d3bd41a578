//! When an automatic certificate is ordered, and when the authority is asked about its renewal. Pure.

use arco_model::id::RowId;
use arco_model::time::Timestamp;
use arco_store::sql::CertificateRow;

/// First and longest pause after a failure, in ms: with these no host fails more than five times in an hour, which is what
/// authorities allow.
const BACK_OFF_MS: (u64, u64) = (120_000, 12 * 3_600_000);
/// Shortest pause when the authority says that there were too many orders, in ms.
const RATE_LIMITED_MS: u64 = 3_600_000;
/// Shortest pause between two questions when to renew, in ms, unless the setting is shorter.
const SHORTEST_CHECK_MS: u64 = 60_000;

/// What is due for a host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// Nothing yet.
    Wait,
    /// The authority is asked when to renew.
    AskWhen,
    /// A certificate is ordered.
    Order,
}

/// What is due for a host with this row.
pub(crate) fn next(row: Option<&CertificateRow>, now: Timestamp) -> Next {
    let Some(row) = row else { return Next::Order };
    let renewal = &row.renewal;
    if renewal.failures > 0 {
        return if now >= renewal.next_at { Next::Order } else { Next::Wait };
    }
    if row.chain_pem.is_empty() || now >= renewal.renew_at {
        Next::Order
    } else if now >= renewal.next_at {
        Next::AskWhen
    } else {
        Next::Wait
    }
}

/// A third of its life before it ends.
pub(super) fn usual_renewal(not_before: Timestamp, not_after: Timestamp) -> Timestamp {
    not_before.plus_ms(not_after.since_ms(not_before) / 3 * 2)
}

/// A tenth of its life before it ends: whatever the authority says, there is time for an order that fails.
pub(super) fn latest_renewal(not_before: Timestamp, not_after: Timestamp) -> Timestamp {
    not_before.plus_ms(not_after.since_ms(not_before) / 10 * 9)
}

/// A point in a window that differs between certificates, so that not all are renewed at once.
pub(super) fn within(start: Timestamp, end: Timestamp, id: &RowId) -> Timestamp {
    let spread = id.as_str().bytes().fold(0u64, |sum, it| sum.wrapping_mul(131).wrapping_add(it.into())) % 1000;
    start.plus_ms(end.since_ms(start) / 1000 * spread)
}

/// The pause until the authority is asked again when to renew. It says `asked_ms`; the setting says `at_most_ms`.
pub(super) fn check_ms(asked_ms: Option<u64>, at_most_ms: u64) -> u64 {
    let at_most_ms = at_most_ms.max(1000);
    asked_ms.unwrap_or(at_most_ms).clamp(SHORTEST_CHECK_MS.min(at_most_ms), at_most_ms)
}

/// The pause after so many failures in a row.
pub(super) fn back_off_ms(failures: u32, rate_limited: bool) -> u64 {
    let pause = BACK_OFF_MS.0.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(BACK_OFF_MS.1);
    if rate_limited { pause.max(RATE_LIMITED_MS) } else { pause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_store::sql::Renewal;

    fn row(failures: u32, issued: bool, next_at: u64, renew_at: u64) -> CertificateRow {
        CertificateRow {
            id: RowId::from_parts(1, 1),
            tenant: "default".parse().unwrap(),
            name: "auto:a.test".to_owned(),
            automatic: true,
            hosts: vec!["a.test".to_owned()],
            issuer: String::new(),
            not_before: Timestamp(0),
            not_after: Timestamp(0),
            chain_pem: if issued { "chain".to_owned() } else { String::new() },
            key_id: String::new(),
            sealed_key: String::new(),
            created_at: Timestamp(0),
            issued_at: Timestamp(0),
            renewal: Renewal {
                failures,
                next_at: Timestamp(next_at),
                renew_at: Timestamp(renew_at),
                ..Renewal::default()
            },
        }
    }

    #[test]
    fn what_is_due() {
        let now = Timestamp(1000);
        assert_eq!(next(None, now), Next::Order);
        for (row, expected) in [
            (row(0, false, 2000, 0), Next::Order),
            (row(0, true, 2000, 5000), Next::Wait),
            (row(0, true, 500, 5000), Next::AskWhen),
            (row(0, true, 2000, 1000), Next::Order),
            (row(3, true, 2000, 500), Next::Wait),
            (row(3, true, 1000, 5000), Next::Order),
            (row(1, false, 2000, 0), Next::Wait),
        ] {
            assert_eq!(next(Some(&row), now), expected, "{row:?}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(usual_renewal(Timestamp(0), Timestamp(90)), Timestamp(60));
        assert_eq!(latest_renewal(Timestamp(100), Timestamp(200)), Timestamp(190));
        let at = within(Timestamp(1_000), Timestamp(2_000_000), &RowId::from_parts(7, 9));
        assert!((1_000..2_000_000).contains(&at.0));
        let pauses = [1, 2, 3, 40].map(|it| back_off_ms(it, false));
        assert_eq!(pauses, [120_000, 240_000, 480_000, 12 * 3_600_000]);
        assert_eq!([1, 40].map(|it| back_off_ms(it, true)), [3_600_000, 12 * 3_600_000]);
        let day = 86_400_000;
        for (asked, at_most, expected) in
            [(None, day, day), (Some(7_000_000), day, 7_000_000), (Some(1), day, 60_000), (Some(9 * day), 5000, 5000)]
        {
            assert_eq!(check_ms(asked, at_most), expected, "{asked:?} {at_most}");
        }
    }
}
