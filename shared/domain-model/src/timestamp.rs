use std::fmt;
use std::str::FromStr;

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// A moment in UTC, to the millisecond. As text RFC 3339: `2026-11-21T07:38:27.123Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(OffsetDateTime);

/// A text that is no [`Timestamp`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no moment: give one as in 2026-11-21T07:38:27Z, in UTC of the years 0 to 9999")]
pub struct TimestampError(String);

impl Timestamp {
    /// The moment, cut to the millisecond.
    ///
    /// # Panics
    /// In UTC it is to be in one of the years -9999 to 9999, as every moment is that the system's clock tells.
    pub fn from_date_time(moment: OffsetDateTime) -> Self {
        let moment = moment.to_offset(UtcOffset::UTC);
        let milliseconds = moment.nanosecond() / 1_000_000;
        Self(moment.replace_nanosecond(milliseconds * 1_000_000).unwrap_or(moment))
    }

    /// The moment as the `time` crate has it.
    pub fn as_date_time(&self) -> OffsetDateTime {
        self.0
    }

    /// Seconds from `earlier` to this moment; negative if it is the other way round.
    pub fn seconds_since(&self, earlier: Self) -> f64 {
        (self.0 - earlier.0).as_seconds_f64()
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(moment: OffsetDateTime) -> Self {
        Self::from_date_time(moment)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = self.0;
        let (date, (hour, minute, second)) = (t.date(), t.to_hms());
        let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
        write!(
            formatter,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
            t.millisecond()
        )
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        OffsetDateTime::parse(text, &Rfc3339)
            .ok()
            .and_then(|moment| moment.checked_to_offset(UtcOffset::UTC))
            .filter(|moment| moment.year() >= 0)
            .map(Self::from_date_time)
            .ok_or_else(|| TimestampError(text.to_owned()))
    }
}

crate::travels_as_text!(Timestamp, "timestamp", { "type": "string", "format": "date-time" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_utc_to_the_millisecond() {
        let read = |text: &str| text.parse::<Timestamp>().unwrap().to_string();
        assert_eq!(read("2026-11-21T07:38:27.1239Z"), "2026-11-21T07:38:27.123Z");
        assert_eq!(read("2026-11-21T09:38:27+02:00"), "2026-11-21T07:38:27.000Z");
        assert_eq!(read("9999-12-31T23:59:59Z"), "9999-12-31T23:59:59.000Z");
        // The last two are in no year of four digits in UTC.
        for wrong in ["2026-11-21", "9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00+01:00"] {
            assert!(wrong.parse::<Timestamp>().is_err(), "{wrong}");
        }
    }
}
