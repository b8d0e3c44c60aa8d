//! What routes do to the head of a request or an answer, made ready once and applied to each: headers, host, path, redirects.
//!
//! A filter never touches what frames a message, what concerns one connection only, or what the sidecar says of who calls;
//! `Host` changes by a rewrite alone. A rule that asks for it is refused when it is made ready, never half applied.
use http::header::{self, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode};
use weft_api::policy::path::normalize_host;
use weft_api::routing::{HeaderChange, PathChange, Redirect, Rewrite};

/// Names that no filter changes.
const UNTOUCHABLE: [HeaderName; 12] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x_forwarded_client_cert"),
];

/// Header fields that are replaced, added and removed, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl HeaderEdit {
    /// Makes a change ready.
    ///
    /// # Errors
    /// It names what no filter changes, or what is no header.
    pub fn new(change: &HeaderChange) -> Result<Self, String> {
        let name = |name: &str| match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) if UNTOUCHABLE.contains(&name) => Err(format!(
                "a filter must not change the header `{name}`: use URLRewrite for the host, leave out the rest"
            )),
            Ok(name) => Ok(name),
            Err(_) => Err(format!("`{}` is not the name of a header", name.escape_debug())),
        };
        let field = |(given, value): &(String, String)| {
            let value = HeaderValue::from_str(value)
                .map_err(|_| format!("the value of the header `{}` holds a control character", given.escape_debug()))?;
            Ok::<_, String>((name(given)?, value))
        };
        Ok(Self {
            set: change.set.iter().map(field).collect::<Result<_, _>>()?,
            add: change.add.iter().map(field).collect::<Result<_, _>>()?,
            remove: change.remove.iter().map(|given| name(given)).collect::<Result<_, _>>()?,
        })
    }

    /// Changes `headers`.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// A path that replaces another, or the prefix of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEdit {
    /// The whole path.
    Full(Box<str>),
    /// The prefix that was matched; without a slash at its end.
    Prefix(Box<str>),
}

impl PathEdit {
    /// Makes a change ready.
    ///
    /// # Errors
    /// What it writes is no path.
    pub fn new(change: &PathChange) -> Result<Self, String> {
        let (given, edit) = match change {
            PathChange::Full(path) => (path, Self::Full(if path.is_empty() { "/" } else { path }.into())),
            PathChange::Prefix(prefix) => (prefix, Self::Prefix(prefix.trim_end_matches('/').into())),
        };
        let sound = given.is_empty()
            || (given.starts_with('/') && !given.contains(['?', '#']) && given.parse::<PathAndQuery>().is_ok());
        match sound {
            true => Ok(edit),
            false => Err(format!("`{}` is not a path: write one that begins with `/`", given.escape_debug())),
        }
    }

    /// The new path and query of a request for `path` (in normal form) and `query`, of which the first `prefix` bytes were
    /// matched. `None`: `path` is none (`*`).
    pub fn apply(&self, path: &str, prefix: usize, query: Option<&str>) -> Option<PathAndQuery> {
        if !path.starts_with('/') {
            return None;
        }
        let (new, rest) = match self {
            Self::Full(new) => (new, ""),
            Self::Prefix(new) => (new, path.get(prefix..).unwrap_or_default()),
        };
        let mut target = String::with_capacity(new.len() + rest.len() + query.map_or(0, |query| query.len() + 1) + 1);
        target.push_str(new);
        target.push_str(rest);
        if target.is_empty() {
            target.push('/');
        }
        if let Some(query) = query {
            target.push('?');
            target.push_str(query);
        }
        PathAndQuery::try_from(target).ok()
    }
}

/// What a request is rewritten to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteEdit {
    /// Its host.
    pub host: Option<HeaderValue>,
    /// Its path.
    pub path: Option<PathEdit>,
}

impl RewriteEdit {
    /// Makes a rewrite ready.
    ///
    /// # Errors
    /// What it writes is no host or no path.
    pub fn new(rewrite: &Rewrite) -> Result<Self, String> {
        let host = rewrite.hostname.as_deref().map(|host| {
            let sound = normalize_host(host).ok().and_then(|host| HeaderValue::from_str(&host).ok());
            sound.ok_or_else(|| format!("`{}` is not the name of a host", host.escape_debug()))
        });
        Ok(Self { host: host.transpose()?, path: rewrite.path.as_ref().map(PathEdit::new).transpose()? })
    }
}

/// An answer that sends the caller elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectEdit {
    https: bool,
    hostname: Option<Box<str>>,
    path: Option<PathEdit>,
    /// `None`: the port that was called.
    port: Option<u16>,
    status: StatusCode,
}

impl RedirectEdit {
    /// Makes a redirect ready.
    ///
    /// # Errors
    /// It has a scheme or status that no redirect has, or no path.
    pub fn new(redirect: &Redirect) -> Result<Self, String> {
        let well_known = match redirect.scheme.as_deref() {
            None => None,
            Some("http") => Some(80),
            Some("https") => Some(443),
            Some(other) => {
                return Err(format!("a redirect to `{}:` is none: write http or https", other.escape_debug()));
            }
        };
        let status = match redirect.status {
            None => StatusCode::FOUND,
            Some(code @ (301 | 302 | 303 | 307 | 308)) => StatusCode::from_u16(code).unwrap_or(StatusCode::FOUND),
            Some(code) => return Err(format!("{code} is no redirect: write 301, 302, 303, 307 or 308")),
        };
        Ok(Self {
            https: well_known == Some(443),
            hostname: redirect.hostname.as_deref().map(Box::from),
            path: redirect.path.as_ref().map(PathEdit::new).transpose()?,
            port: redirect.port.or(well_known),
            status,
        })
    }

    /// Status and `Location` for a request for `target` on `host` (without port), which came to the port `called` in the
    /// clear. `path` is its path in normal form, of which the first `prefix` bytes were matched.
    pub fn answer(
        &self,
        host: &str,
        called: u16,
        target: &PathAndQuery,
        path: &str,
        prefix: usize,
    ) -> Option<(StatusCode, HeaderValue)> {
        let scheme = if self.https { "https" } else { "http" };
        let host = self.hostname.as_deref().unwrap_or(host);
        let changed = self.path.as_ref().and_then(|edit| edit.apply(path, prefix, target.query()));
        let target = changed.as_ref().unwrap_or(target);
        let location = match (self.port.unwrap_or(called), self.https) {
            (80, false) | (443, true) => format!("{scheme}://{host}{target}"),
            (port, _) => format!("{scheme}://{host}:{port}{target}"),
        };
        Some((self.status, HeaderValue::from_str(&location).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_by_the_table_of_the_api() {
        for (path, matched, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/bar", "", "/xyz", "/xyz/foo/bar"),
            ("/prefix/one/two", "/prefix/one", "/one", "/one/two"),
            ("/strip-prefix/three", "/strip-prefix", "/", "/three"),
        ] {
            let edit = PathEdit::new(&PathChange::Prefix(replacement.into())).expect("a path");
            let made = edit.apply(path, matched.len(), None).expect("a path");
            assert_eq!(made, expected, "{path} {matched} {replacement}");
        }
        let full = PathEdit::new(&PathChange::Full("/one".into())).expect("a path");
        assert_eq!(full.apply("/full/one/two", 9, Some("q=1?")).expect("a path"), "/one?q=1?");
        assert_eq!(full.apply("*", 0, None), None);
    }

    #[test]
    fn a_redirect_leads_where_the_api_says_and_names_no_well_known_port() {
        let to = |scheme: &str, hostname: &str, port: u16, path: Option<PathChange>| Redirect {
            scheme: Some(scheme.to_owned()).filter(|scheme| !scheme.is_empty()),
            hostname: Some(hostname.to_owned()).filter(|hostname| !hostname.is_empty()),
            port: Some(port).filter(|port| *port != 0),
            path,
            status: None,
        };
        let prefix = |path: &str| Some(PathChange::Prefix(path.into()));
        let full = |path: &str| Some(PathChange::Full(path.into()));
        for (redirect, called, expected) in [
            (to("", "", 0, None), 80, "http://echo/a/b?q=1"),
            (to("", "", 0, None), 8080, "http://echo:8080/a/b?q=1"),
            (to("", "example.org", 0, None), 80, "http://example.org/a/b?q=1"),
            (to("", "example.org", 0, None), 8080, "http://example.org:8080/a/b?q=1"),
            (to("https", "", 0, None), 80, "https://echo/a/b?q=1"),
            (to("https", "", 0, None), 8080, "https://echo/a/b?q=1"),
            (to("http", "", 0, None), 8080, "http://echo/a/b?q=1"),
            (to("", "", 8083, None), 80, "http://echo:8083/a/b?q=1"),
            (to("", "", 80, None), 8080, "http://echo/a/b?q=1"),
            (to("https", "", 443, None), 80, "https://echo/a/b?q=1"),
            (to("https", "", 80, None), 80, "https://echo:80/a/b?q=1"),
            (to("http", "", 443, None), 80, "http://echo:443/a/b?q=1"),
            (to("", "", 0, prefix("/c")), 80, "http://echo/c/b?q=1"),
            (to("", "", 0, prefix("/")), 80, "http://echo/b?q=1"),
            (to("", "example.org", 0, full("/c")), 80, "http://example.org/c?q=1"),
        ] {
            let edit = RedirectEdit::new(&redirect).expect("a redirect");
            let target = PathAndQuery::from_static("/a/b?q=1");
            let (status, location) = edit.answer("echo", called, &target, "/a/b", 2).expect("an answer");
            assert_eq!((status, location.to_str().ok()), (StatusCode::FOUND, Some(expected)), "{redirect:?}");
        }
        for status in [301, 302, 303, 307, 308] {
            let edit =
                RedirectEdit::new(&Redirect { status: Some(status), ..Redirect::default() }).expect("a redirect");
            let answer = edit.answer("echo", 80, &PathAndQuery::from_static("/"), "/", 0).expect("an answer");
            assert_eq!(answer.0, status);
        }
    }

    #[test]
    fn headers_are_set_added_and_removed() {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let edit = HeaderEdit::new(&HeaderChange {
            set: vec![field("x-set", "new")],
            add: vec![field("x-add", "second"), field("x-new", "1")],
            remove: vec!["x-remove".into(), "x-absent".into()],
        });
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-set", "a"), ("x-set", "b"), ("x-add", "first"), ("x-remove", "1"), ("x-kept", "1")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        edit.expect("a change").apply(&mut headers);
        let lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or_default())).collect();
        for line in ["x-set: new", "x-add: first", "x-add: second", "x-new: 1", "x-kept: 1"] {
            assert!(lines.iter().any(|known| known == line), "{line} in {lines:?}");
        }
        assert_eq!(lines.len(), 5, "{lines:?}");
    }

    #[test]
    fn what_no_filter_may_do_is_refused_with_the_reason() {
        for name in
            ["Host", "content-length", "Transfer-Encoding", "connection", "te", "X-Forwarded-Client-Cert", "a b"]
        {
            let set = HeaderChange { set: vec![(name.into(), "1".into())], ..HeaderChange::default() };
            let remove = HeaderChange { remove: vec![name.into()], ..HeaderChange::default() };
            for change in [set, remove] {
                let refused = HeaderEdit::new(&change).expect_err(name);
                assert!(refused.contains(&name.to_lowercase()), "{refused}");
            }
        }
        let split = HeaderChange { add: vec![("x".into(), "a\r\nb: c".into())], ..HeaderChange::default() };
        assert!(HeaderEdit::new(&split).is_err());
        for path in ["relative", "/a?b=c", "/a#b", "/a b"] {
            assert!(PathEdit::new(&PathChange::Full(path.into())).is_err(), "{path}");
        }
        assert!(RewriteEdit::new(&Rewrite { hostname: Some("a b".into()), path: None }).is_err());
        assert!(RedirectEdit::new(&Redirect { status: Some(200), ..Redirect::default() }).is_err());
        assert!(RedirectEdit::new(&Redirect { scheme: Some("ftp".into()), ..Redirect::default() }).is_err());
    }
}
