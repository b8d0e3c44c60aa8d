//! Trace context in HTTP headers: W3C Trace Context (traceparent, tracestate) and B3, read and written.
//!
//! Header bytes come from anywhere: what does not follow the standard to the letter counts as absent, what is oversized
//! is not passed on, and neither is ever an error to the caller.
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::event::TraceIds;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const B3: HeaderName = HeaderName::from_static("b3");
const X_B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const X_B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const X_B3_PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const X_B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const X_B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// W3C Trace Context, section 3.3.1.5: at least 512 characters must be propagated; longer ones are dropped whole.
const TRACESTATE_MAX: usize = 512;
/// W3C Trace Context, section 3.3.1.1.
const TRACESTATE_MEMBERS_MAX: usize = 32;
/// W3C Baggage, section 3.3.2: 8192 bytes must be propagated.
const BAGGAGE_MAX: usize = 8192;

/// What a request's headers say of its trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Incoming {
    /// The caller's span.
    pub(super) parent: Option<TraceIds>,
    /// The caller's decision; `None`: left to us.
    pub(super) sampled: Option<bool>,
    /// `tracestate` as it came, if it belongs to a valid `traceparent` and is of bounded size.
    pub(super) tracestate: Vec<HeaderValue>,
    /// Which B3 forms were present, to be brought up to date beside `traceparent`.
    pub(super) b3_single: bool,
    pub(super) b3_multi: bool,
}

/// Reads the trace context: `traceparent` first, then `b3`, then the `x-b3-` fields.
pub(super) fn extract(headers: &HeaderMap) -> Incoming {
    let mut incoming = Incoming {
        b3_single: headers.contains_key(B3),
        b3_multi: headers.contains_key(X_B3_TRACE_ID) || headers.contains_key(X_B3_SAMPLED),
        ..Incoming::default()
    };
    if let Some((parent, sampled)) = single(headers, &TRACEPARENT).and_then(traceparent) {
        incoming.parent = Some(parent);
        incoming.sampled = Some(sampled);
        incoming.tracestate = tracestate(headers);
    } else if let Some((parent, sampled)) = single(headers, &B3).and_then(b3_single) {
        incoming.parent = parent;
        incoming.sampled = sampled;
    } else if incoming.b3_multi {
        (incoming.parent, incoming.sampled) = b3_multi(headers);
    }
    incoming
}

/// Writes `span` as the caller's span of the next hop and removes what must not be passed on.
pub(super) fn inject(
    span: TraceIds,
    parent: Option<TraceIds>,
    sampled: bool,
    incoming: &Incoming,
    headers: &mut HeaderMap,
) {
    let TraceIds { trace_id, span_id } = span;
    let flag = u8::from(sampled);
    set(headers, TRACEPARENT, &format!("00-{trace_id:032x}-{span_id:016x}-{flag:02x}"));
    if incoming.tracestate.is_empty() {
        headers.remove(TRACESTATE);
    }
    if headers.get_all(BAGGAGE).iter().map(HeaderValue::len).sum::<usize>() > BAGGAGE_MAX {
        headers.remove(BAGGAGE);
    }
    if incoming.b3_single {
        let value = match parent {
            Some(parent) => format!("{trace_id:032x}-{span_id:016x}-{flag}-{:016x}", parent.span_id),
            None => format!("{trace_id:032x}-{span_id:016x}-{flag}"),
        };
        set(headers, B3, &value);
    }
    if incoming.b3_multi {
        set(headers, X_B3_TRACE_ID, &format!("{trace_id:032x}"));
        set(headers, X_B3_SPAN_ID, &format!("{span_id:016x}"));
        set(headers, X_B3_SAMPLED, &flag.to_string());
        match parent {
            Some(parent) => set(headers, X_B3_PARENT_SPAN_ID, &format!("{:016x}", parent.span_id)),
            None => drop(headers.remove(X_B3_PARENT_SPAN_ID)),
        }
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    headers.insert(name, HeaderValue::from_str(value).expect("hexadecimal digits and dashes"));
}

/// The value of a header that occurs once; a repeated one has no single reading.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// W3C Trace Context, section 3.2: `00-<32 lower-case hex>-<16>-<2>`, later versions may be longer.
fn traceparent(value: &str) -> Option<(TraceIds, bool)> {
    let bytes = value.as_bytes();
    let dashes = bytes.len() >= 55 && bytes[2] == b'-' && bytes[35] == b'-' && bytes[52] == b'-';
    if !dashes || !value.is_ascii() || bytes[..55].iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let version = hex(&value[..2])?;
    let longer = match version {
        0xff => return None,
        0 => bytes.len() > 55,
        _ => bytes.len() > 55 && bytes[55] != b'-',
    };
    let (trace_id, span_id, flags) = (hex(&value[3..35])?, hex(&value[36..52])?, hex(&value[53..55])?);
    if longer || trace_id == 0 || span_id == 0 {
        return None;
    }
    Some((TraceIds { trace_id, span_id: span_id as u64 }, flags & 1 == 1))
}

fn tracestate(headers: &HeaderMap) -> Vec<HeaderValue> {
    let values: Vec<HeaderValue> = headers.get_all(TRACESTATE).iter().cloned().collect();
    let bytes = values.iter().map(|value| value.len() + 1).sum::<usize>().saturating_sub(1);
    let members = values.iter().map(|value| value.as_bytes().split(|byte| *byte == b',').count()).sum::<usize>();
    let text = values.iter().all(|value| value.to_str().is_ok());
    if bytes <= TRACESTATE_MAX && members <= TRACESTATE_MEMBERS_MAX && text { values } else { Vec::new() }
}

/// B3 single header: `{trace}-{span}-{sampling}-{parent}`, the last two optional; or the sampling state alone.
fn b3_single(value: &str) -> Option<(Option<TraceIds>, Option<bool>)> {
    let mut parts = value.split('-');
    let first = parts.next()?;
    let Some(span) = parts.next() else {
        return b3_sampled(first).map(|sampled| (None, Some(sampled)));
    };
    let ids = b3_ids(first, span)?;
    let sampled = match parts.next() {
        Some(state) => Some(b3_sampled(state)?),
        None => None,
    };
    let well_formed = parts.next().is_none_or(|parent| parent.len() == 16 && hex(parent).is_some());
    (well_formed && parts.next().is_none()).then_some((Some(ids), sampled))
}

fn b3_multi(headers: &HeaderMap) -> (Option<TraceIds>, Option<bool>) {
    let ids = single(headers, &X_B3_TRACE_ID)
        .zip(single(headers, &X_B3_SPAN_ID))
        .and_then(|(trace, span)| b3_ids(trace, span));
    // The debug flag means sampled, and then the other field is left out.
    let debug = single(headers, &X_B3_FLAGS).is_some_and(|flags| flags == "1").then_some(true);
    (ids, debug.or_else(|| single(headers, &X_B3_SAMPLED).and_then(b3_sampled)))
}

fn b3_ids(trace: &str, span: &str) -> Option<TraceIds> {
    let lengths = matches!(trace.len(), 16 | 32) && span.len() == 16;
    let (trace_id, span_id) = (hex(trace)?, hex(span)?);
    (lengths && trace_id != 0 && span_id != 0).then_some(TraceIds { trace_id, span_id: span_id as u64 })
}

fn b3_sampled(state: &str) -> Option<bool> {
    match state {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// Hexadecimal digits and nothing else: `from_str_radix` alone would take a sign.
fn hex(digits: &str) -> Option<u128> {
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if valid { u128::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";
    const IDS: TraceIds =
        TraceIds { trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, span_id: 0x00f0_67aa_0ba9_02b7 };

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
        }
        map
    }

    #[test]
    fn a_valid_traceparent_is_continued_and_an_invalid_one_counts_as_absent() {
        let valid = |value: String| extract(&headers(&[("traceparent", &value)])).parent;
        for (value, expected) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(IDS)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(IDS)),
            (format!("cc-{TRACE}-{SPAN}-01"), Some(IDS)),
            (format!("cc-{TRACE}-{SPAN}-01-what-the-future-adds"), Some(IDS)),
            (format!("00-{TRACE}-{SPAN}-01-more"), None),
            (format!("cc-{TRACE}-{SPAN}-01x"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-{SPAN}-01", &TRACE[1..]), None),
            (format!("00-{TRACE}-{SPAN}-0g"), None),
            (format!("00-+{}-{SPAN}-01", &TRACE[1..]), None),
            (format!("00-{TRACE}-{SPAN}"), None),
            (format!("00-{TRACE}-{SPAN}-\u{e9}"), None),
            (String::new(), None),
            ("\u{e9}".repeat(60), None),
        ] {
            assert_eq!(valid(value.clone()), expected, "{value:?}");
        }
        let twice = format!("00-{TRACE}-{SPAN}-01");
        let twice = headers(&[("traceparent", &twice), ("traceparent", &twice)]);
        assert_eq!(extract(&twice).parent, None, "a repeated field has no single reading");
    }

    #[test]
    fn b3_is_read_in_both_its_forms() {
        for (fields, parent, sampled) in [
            (vec![("b3", format!("{TRACE}-{SPAN}-1"))], Some(IDS), Some(true)),
            (vec![("b3", format!("{TRACE}-{SPAN}-0-{SPAN}"))], Some(IDS), Some(false)),
            (vec![("b3", format!("{TRACE}-{SPAN}"))], Some(IDS), None),
            (vec![("b3", "0".into())], None, Some(false)),
            (vec![("b3", "nonsense".into())], None, None),
            (vec![("b3", format!("{TRACE}-{SPAN}-1-short"))], None, None),
            (
                vec![("x-b3-traceid", TRACE.into()), ("x-b3-spanid", SPAN.into()), ("x-b3-sampled", "1".into())],
                Some(IDS),
                Some(true),
            ),
            (
                vec![("x-b3-traceid", TRACE[16..].into()), ("x-b3-spanid", SPAN.into()), ("x-b3-flags", "1".into())],
                Some(TraceIds { trace_id: 0xa3ce_929d_0e0e_4736, ..IDS }),
                Some(true),
            ),
            (vec![("x-b3-sampled", "0".into())], None, Some(false)),
        ] {
            let fields: Vec<(&'static str, &str)> =
                fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let incoming = extract(&headers(&fields));
            assert_eq!((incoming.parent, incoming.sampled), (parent, sampled), "{fields:?}");
        }
    }

    #[test]
    fn oversized_tracestate_and_baggage_are_not_passed_on() {
        let traceparent = format!("00-{TRACE}-{SPAN}-01");
        let many = (0..33).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        for (state, baggage, kept) in [
            ("vendor=1".into(), "user=1".into(), true),
            (many, "x".repeat(8193), false),
            ("x".repeat(513), "x".repeat(100_000), false),
        ] {
            let mut map = headers(&[("traceparent", &traceparent), ("tracestate", &state), ("baggage", &baggage)]);
            let incoming = extract(&map);
            inject(TraceIds { span_id: 7, ..IDS }, incoming.parent, true, &incoming, &mut map);
            assert_eq!(map.contains_key("tracestate"), kept);
            assert_eq!(map.contains_key("baggage"), kept);
        }
        let mut orphan = headers(&[("traceparent", "junk"), ("tracestate", "vendor=1")]);
        let incoming = extract(&orphan);
        inject(IDS, None, true, &incoming, &mut orphan);
        assert!(!orphan.contains_key("tracestate"), "it belonged to the trace that could not be read");
    }

    #[test]
    fn the_next_hop_sees_our_span_in_every_form_that_came() {
        let ours = TraceIds { span_id: 0xabc, ..IDS };
        let mut map = headers(&[
            ("b3", &format!("{TRACE}-{SPAN}-1")),
            ("x-b3-traceid", TRACE),
            ("x-b3-spanid", SPAN),
            ("x-b3-sampled", "1"),
        ]);
        let incoming = extract(&map);
        inject(ours, incoming.parent, true, &incoming, &mut map);
        assert_eq!(map["traceparent"], format!("00-{TRACE}-0000000000000abc-01"));
        assert_eq!(map["b3"], format!("{TRACE}-0000000000000abc-1-{SPAN}"));
        assert_eq!(map["x-b3-spanid"], "0000000000000abc");
        assert_eq!(map["x-b3-parentspanid"], SPAN);
        assert_eq!(extract(&map).parent, Some(ours));
    }
}
