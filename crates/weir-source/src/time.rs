//! RFC 3339 timestamps, as far as `metadata.creationTimestamp` needs them.

/// Seconds since 1970 of `2026-11-20T10:00:00Z`, also with a fraction or an offset.
pub(crate) fn unix_seconds(text: &str) -> Option<i64> {
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let mut parts = date.splitn(3, '-').map(number);
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let split = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at(split);
    let clock = clock.split_once('.').map_or(clock, |(whole, _)| whole);
    let mut parts = clock.splitn(3, ':').map(number);
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let seconds = number(hours)? * 3600 + number(minutes)? * 60;
            if zone.starts_with('-') { -seconds } else { seconds }
        }
    };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

fn number(text: &str) -> Option<i64> {
    (!text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

/// Days since 1970-01-01 in the Gregorian calendar; years begin in March, so that the day that
/// comes and goes is their last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::unix_seconds;

    #[test]
    fn known_times() {
        assert_eq!(unix_seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(unix_seconds("2000-02-29T12:00:00Z"), Some(951_825_600));
        assert_eq!(unix_seconds("2026-11-20T10:00:00.123456Z"), Some(1_795_168_800));
        assert_eq!(unix_seconds("2026-11-20T12:00:00+02:00"), Some(1_795_168_800));
        assert_eq!(unix_seconds("2026-11-20T07:30:00-02:30"), Some(1_795_168_800));
    }

    #[test]
    fn no_times() {
        for text in
            ["", "today", "2026-13-01T00:00:00Z", "2026-11-20", "2026-11-20T10:00Z", "2026-11-20T10:00:00"]
        {
            assert_eq!(unix_seconds(text), None, "{text}");
        }
    }
}
