use std::fmt;
use std::str::FromStr;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A moment in UTC, to the millisecond. As text RFC 3339: `2026-11-21T07:38:27.123Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(OffsetDateTime);

impl Timestamp {
    /// The moment, cut to the millisecond.
    pub fn from_date_time(moment: OffsetDateTime) -> Self {
        let moment = moment.to_offset(time::UtcOffset::UTC);
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
    type Err = time::error::Parse;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        OffsetDateTime::parse(text, &Rfc3339).map(Self::from_date_time)
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
        assert!("2026-11-21".parse::<Timestamp>().is_err());
    }
}
