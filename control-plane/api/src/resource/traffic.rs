//! Annotations of a Service that say how calls to it are carried. Their defaults are [`Traffic::DEFAULT`].
use std::ops::RangeInclusive;
use std::time::Duration;

use super::ResourceError;
use super::error::quoted;
use super::metadata::annotation;
use super::node::{At, Fields};
use crate::duration;
use crate::workload::Traffic;

/// The longest time that may be set.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The largest count that may be set.
const MOST: u32 = 1_000_000;

/// One setting: its annotation, and how its value is put into a [`Traffic`].
struct Setting {
    annotation: &'static str,
    kind: Kind,
}

enum Kind {
    /// A time that is unlimited by default; `0s` says so.
    Limit(fn(&mut Traffic, Option<Duration>)),
    /// A time above nothing.
    Time(fn(&mut Traffic, Duration)),
    /// A number within a range.
    Count(RangeInclusive<u32>, fn(&mut Traffic, u32)),
}

const SETTINGS: &[Setting] = &[
    Setting {
        annotation: "weft.dev/request-timeout",
        kind: Kind::Limit(|traffic, time| traffic.request_timeout = time),
    },
    Setting { annotation: "weft.dev/idle-timeout", kind: Kind::Limit(|traffic, time| traffic.idle_timeout = time) },
    Setting {
        annotation: "weft.dev/connect-timeout",
        kind: Kind::Time(|traffic, time| traffic.connect_timeout = time),
    },
    Setting {
        annotation: "weft.dev/max-connections",
        kind: Kind::Count(1..=MOST, |traffic, count| traffic.max_connections = count),
    },
    Setting {
        annotation: "weft.dev/max-requests",
        kind: Kind::Count(1..=MOST, |traffic, count| traffic.max_requests = count),
    },
    Setting {
        annotation: "weft.dev/max-pending-requests",
        kind: Kind::Count(1..=MOST, |traffic, count| traffic.max_pending = count),
    },
    Setting {
        annotation: "weft.dev/retry-budget",
        kind: Kind::Count(0..=100, |traffic, percent| traffic.retry_budget = percent),
    },
    Setting {
        annotation: "weft.dev/eject-after",
        kind: Kind::Count(0..=1_000, |traffic, count| traffic.eject_after = count),
    },
];

/// The annotations, by name.
pub fn traffic_annotations() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|setting| setting.annotation)
}

/// What the annotations of a Service say.
pub(crate) fn annotations(document: &Fields<'_>) -> Result<Traffic, ResourceError> {
    let mut traffic = Traffic::DEFAULT;
    for setting in SETTINGS {
        let Some(at) = annotation(document, setting.annotation) else { continue };
        match &setting.kind {
            Kind::Limit(set) => set(&mut traffic, Some(time(&at, Duration::ZERO)?).filter(|time| !time.is_zero())),
            Kind::Time(set) => set(&mut traffic, time(&at, Duration::from_millis(1))?),
            Kind::Count(range, set) => set(&mut traffic, count(&at, range)?),
        }
    }
    Ok(traffic)
}

fn time(at: &At<'_>, least: Duration) -> Result<Duration, ResourceError> {
    let text = at.text()?;
    let time = duration::parse(text).ok().filter(|time| (least..=LONGEST).contains(time));
    time.ok_or_else(|| {
        let none = if least.is_zero() { ", or `0s` for no limit" } else { "" };
        let remedy = format!("Write a time up to 24h, such as `500ms`, `15s` or `5m`{none}.");
        at.error(format_args!("is {}, which is no time that can be kept to", quoted(text)), remedy)
    })
}

fn count(at: &At<'_>, range: &RangeInclusive<u32>) -> Result<u32, ResourceError> {
    let text = at.text()?;
    let count = text.parse().ok().filter(|count| range.contains(count));
    count.ok_or_else(|| {
        let remedy = format!("Write a whole number from {} to {}, in quotes.", range.start(), range.end());
        at.error(format_args!("is {}, which is not in the range", quoted(text)), remedy)
    })
}
