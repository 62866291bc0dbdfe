//! Times as the tables keep them.

use std::time::SystemTime;

use ::time::OffsetDateTime;
use serde::{Deserialize, Serialize};

/// Microseconds since 1970 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub i64);

/// The time now.
pub fn now() -> Micros {
    let elapsed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Micros(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
}

impl Micros {
    fn date(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// `2026-11-20T10:00:00Z`, as most of Nova's answers have it.
    pub fn iso(self) -> String {
        let d = self.date();
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            d.year(),
            u8::from(d.month()),
            d.day(),
            d.hour(),
            d.minute(),
            d.second()
        )
    }

    /// `2026-11-20T10:00:00.000000`, as Nova's answers have it where they print a naive time.
    pub fn naive(self) -> String {
        let iso = self.iso();
        format!("{}.{:06}", iso.trim_end_matches('Z'), self.date().microsecond())
    }

    /// `Fri, 20 Nov 2026 10:00:00 GMT`, as HTTP's headers have it (RFC 9110 §5.6.7).
    pub fn http_date(self) -> String {
        let d = self.date();
        let (weekday, month) = (d.weekday().to_string(), d.month().to_string());
        format!(
            "{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT",
            weekday.get(..3).unwrap_or_default(),
            d.day(),
            month.get(..3).unwrap_or_default(),
            d.year(),
            d.hour(),
            d.minute(),
            d.second()
        )
    }

    /// Seconds since 1970.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl Micros {
    /// Reads ISO 8601 with or without zone and fraction; without a zone it is UTC.
    pub fn parse(text: &str) -> Option<Micros> {
        use ::time::format_description::well_known::Iso8601;
        let text = text.trim();
        if !text.is_ascii() || text.len() > 40 {
            return None;
        }
        let mut text = text.replacen(' ', "T", 1);
        if text.len() == 10 {
            text.push_str("T00:00:00");
        }
        let has_zone = text.ends_with(['Z', 'z']) || text.get(10..).is_some_and(|t| t.contains(['+', '-']));
        if !has_zone {
            text.push('Z');
        }
        let date = OffsetDateTime::parse(&text, &Iso8601::PARSING).ok()?;
        i64::try_from(date.unix_timestamp_nanos() / 1000).ok().map(Micros)
    }
}

impl rusqlite::ToSql for Micros {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl rusqlite::types::FromSql for Micros {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        i64::column_result(value).map(Micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_for_headers() {
        assert_eq!(
            Micros(784_111_777_000_000).http_date(),
            "Sun, 06 Nov 1994 08:49:37 GMT"
        );
    }

    #[test]
    fn prints_and_reads_the_forms_that_clients_use() {
        let t = Micros(1_795_168_800_000_001);
        assert_eq!(t.iso(), "2026-11-20T10:00:00Z");
        assert_eq!(t.naive(), "2026-11-20T10:00:00.000001");
        for text in [
            "2026-11-20T10:00:00.000001Z",
            "2026-11-20T10:00:00.000001",
            "2026-11-20 10:00:00.000001",
            "2026-11-20T12:00:00.000001+02:00",
        ] {
            assert_eq!(Micros::parse(text), Some(t), "{text}");
        }
        assert_eq!(
            Micros::parse("2026-11-20").map(Micros::iso).as_deref(),
            Some("2026-11-20T00:00:00Z")
        );
        for text in ["", "yesterday", "2026-13-01", "2026-11-20T25:00:00", "é026-11-20"] {
            assert_eq!(Micros::parse(text), None, "{text}");
        }
    }
}
