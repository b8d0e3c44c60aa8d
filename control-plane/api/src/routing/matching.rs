//! One match of a rule, ready to be compared with requests.
use http::HeaderMap;
use http::header::{HOST, HeaderName};

use super::pattern::{BadPattern, Pattern};
use super::{Match, PathMatch, RequestView, Text, ValueMatch, query};

/// A [`Match`] whose regular expressions are compiled and whose names are parsed.
#[derive(Clone, Debug)]
pub(super) struct Matcher {
    pub(super) path: PathMatcher,
    method: Option<Box<str>>,
    headers: Box<[(HeaderName, TextMatcher)]>,
    query: Box<[(Box<str>, TextMatcher)]>,
}

#[derive(Clone, Debug)]
pub(super) enum PathMatcher {
    Any,
    Exact(Box<str>),
    Prefix(Box<str>),
    Regex(Pattern),
    Rpc { service: Option<TextMatcher>, method: Option<TextMatcher> },
}

#[derive(Clone, Debug)]
pub(super) enum TextMatcher {
    Exact(Box<str>),
    Regex(Pattern),
}

impl Matcher {
    /// What fits every request.
    pub(super) const ANY: &'static Match = &Match { path: None, method: None, headers: Vec::new(), query: Vec::new() };

    pub(super) fn compile(given: &Match) -> Result<Self, String> {
        let header = |header: &ValueMatch| {
            let name = HeaderName::from_bytes(header.name.as_bytes())
                .map_err(|_| format!("`{}` is not the name of a header", header.name.escape_debug()))?;
            let value = TextMatcher::compile(&header.value).map_err(|bad| format!("header `{name}`: {bad}"))?;
            Ok::<_, String>((name, value))
        };
        let parameter = |parameter: &ValueMatch| {
            let value = TextMatcher::compile(&parameter.value);
            let name = parameter.name.as_str();
            Ok::<_, String>((name.into(), value.map_err(|bad| format!("query parameter `{name}`: {bad}"))?))
        };
        Ok(Self {
            path: PathMatcher::compile(given.path.as_ref()).map_err(|bad| format!("path: {bad}"))?,
            method: given.method.as_deref().map(Box::from),
            headers: given.headers.iter().map(header).collect::<Result<_, _>>()?,
            query: given.query.iter().map(parameter).collect::<Result<_, _>>()?,
        })
    }

    /// The cheapest comparison first.
    pub(super) fn fits(&self, request: &RequestView<'_>) -> bool {
        self.method.as_deref().is_none_or(|method| method == request.method)
            && self.path.fits(request.path)
            && self.headers.iter().all(|(name, value)| match *name == HOST {
                true => request.host.is_some_and(|host| value.fits(host.as_bytes())),
                false => value.fits_lines(request.headers, name),
            })
            && self.query.iter().all(|(name, value)| {
                query::first(request.query.unwrap_or_default(), name).is_some_and(|found| value.fits_encoded(found))
            })
    }
}

impl PathMatcher {
    fn compile(given: Option<&PathMatch>) -> Result<Self, BadPattern> {
        let text = |text: &Option<Text>| text.as_ref().map(TextMatcher::compile).transpose();
        Ok(match given {
            None => Self::Any,
            Some(PathMatch::Exact(path)) => Self::Exact(path.as_str().into()),
            Some(PathMatch::Prefix(path)) => match path.trim_end_matches('/') {
                "" => Self::Any,
                prefix => Self::Prefix(prefix.into()),
            },
            Some(PathMatch::Regex(pattern)) => Self::Regex(Pattern::compile(pattern)?),
            Some(PathMatch::Rpc { service, method }) => Self::Rpc { service: text(service)?, method: text(method)? },
        })
    }

    fn fits(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(pattern) => pattern.fits(path.as_bytes()),
            Self::Rpc { service: None, method: None } => true,
            Self::Rpc { service, method } => {
                let called = path.strip_prefix('/').and_then(|call| call.split_once('/'));
                let fits = |text: &Option<TextMatcher>, called: &str| {
                    text.as_ref().is_none_or(|text| text.fits(called.as_bytes()))
                };
                called.is_some_and(|(in_service, name)| fits(service, in_service) && fits(method, name))
            }
        }
    }

    /// Bytes at the beginning of a path that it fits and a change of the prefix replaces.
    pub(super) fn prefix(&self) -> usize {
        match self {
            Self::Prefix(prefix) => prefix.len(),
            _ => 0,
        }
    }
}

impl TextMatcher {
    fn compile(given: &Text) -> Result<Self, BadPattern> {
        Ok(match given {
            Text::Exact(text) => Self::Exact(text.as_str().into()),
            Text::Regex(pattern) => Self::Regex(Pattern::compile(pattern)?),
        })
    }

    fn fits(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == text,
            Self::Regex(pattern) => pattern.fits(text),
        }
    }

    fn fits_encoded(&self, encoded: &str) -> bool {
        match self {
            Self::Exact(exact) => query::is(encoded, exact),
            Self::Regex(pattern) => pattern.fits(&query::decode(encoded)),
        }
    }

    /// Several lines of one name are read as one with commas between (RFC 9110 section 5.3).
    fn fits_lines(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        let mut lines = headers.get_all(name).iter().map(|line| line.as_bytes());
        let Some(first) = lines.next() else { return false };
        let Some(second) = lines.next() else { return self.fits(first) };
        let mut joined = [first, b",", second].concat();
        for line in lines {
            joined.push(b',');
            joined.extend_from_slice(line);
        }
        self.fits(&joined)
    }
}
