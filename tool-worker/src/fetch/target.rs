//! From a URL to what is asked of whom.
//!
//! The parser is the one browsers agree on, so an address is seen as such in every spelling (`2130706433`, `0x7f.1`,
//! `0177.0.0.1`, full-width digits), and host and path are what a server will see.

use std::net::IpAddr;

use url::{Host, Url};

use super::Fault;

/// Longest URL.
const URL_BYTES_MAX: usize = 4 << 10;

/// One address to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) url: Url,
    pub(super) host: Host<String>,
    pub(super) port: u16,
    pub(super) tls: bool,
}

impl Target {
    /// Reads a URL, or where `base` redirects to.
    pub(super) fn read(text: &str, base: Option<&Self>) -> Result<Self, Fault> {
        let shown: String = text.chars().take(200).collect();
        if text.len() > URL_BYTES_MAX {
            return Err(Fault::Url(format!("the URL has {} bytes, the limit is {URL_BYTES_MAX}", text.len())));
        }
        let parsed = match base {
            Some(base) => base.url.join(text),
            None => Url::parse(text),
        };
        let mut url = parsed.map_err(|error| {
            Fault::Url(format!("{shown:?} is no URL ({error}); expected one such as https://example.org/page"))
        })?;
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            other => return Err(Fault::Refused(format!("{other}: is not fetched, only http: and https: are"))),
        };
        // What stands before an @ deceives readers, or is somebody's password.
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Fault::Refused("a URL with a user or password in it is not fetched".to_owned()));
        }
        url.set_fragment(None);
        let host =
            url.host().map(|host| host.to_owned()).ok_or_else(|| Fault::Url(format!("{shown:?} has no host")))?;
        let port = url.port_or_known_default().expect("http and https have default ports");
        Ok(Self { url, host, port, tls })
    }

    /// The address, where the URL holds one and no name.
    pub(super) fn literal(&self) -> Option<IpAddr> {
        match &self.host {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some((*address).into()),
            Host::Ipv6(address) => Some((*address).into()),
        }
    }

    /// `host:port`, as lists of what is allowed write it.
    pub(super) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Host and port as the header `Host` names them.
    pub(super) fn host_header(&self) -> String {
        match self.url.port() {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.to_string(),
        }
    }

    /// Path and query.
    pub(super) fn path(&self) -> String {
        match self.url.query() {
            Some(query) => format!("{}?{query}", self.url.path()),
            None => self.url.path().to_owned(),
        }
    }

    /// Whether both are served by the same.
    pub(super) fn same_origin(&self, other: &Self) -> bool {
        (&self.host, self.port, self.tls) == (&other.host, other.port, other.tls)
    }
}

/// An entry of a list of what is allowed, as [`Target::authority`] writes it. None where it is no `host:port`.
pub(super) fn authority(entry: &str) -> Option<String> {
    let (host, port) = entry.trim().rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
    // No patterns: an entry names one server.
    let plain = |c: char| c.is_alphanumeric() || "-._[]:".contains(c);
    let host = Some(host).filter(|host| host.chars().all(plain))?;
    Some(format!("{}:{port}", Host::parse(host).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_seen_in_every_spelling() {
        for spelling in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0x7f000001/",
            "http://0177.0.0.1/",
            "http://127.1/",
            "http://127.0.1/",
            "http://017700000001/",
            "http://①②⑦.0.0.1/",
            "http://%31%32%37.0.0.1/",
            "http:\\\\127.0.0.1\\",
            "  http://127.0.0.1\n/",
        ] {
            let target = Target::read(spelling, None).unwrap();
            assert_eq!(target.literal(), Some("127.0.0.1".parse().unwrap()), "{spelling}");
        }
        let mapped = Target::read("http://[::ffff:127.0.0.1]:80/", None).unwrap();
        assert_eq!(mapped.literal(), Some("::ffff:127.0.0.1".parse().unwrap()));
        assert_eq!(Target::read("http://localhost./x", None).unwrap().literal(), None, "names are resolved");
    }

    #[test]
    fn what_is_no_address_of_the_web_is_refused() {
        for (url, said) in [
            ("file:///etc/passwd", "file: is not fetched"),
            ("gopher://example.org/", "gopher: is not fetched"),
            ("data:text/html,x", "data: is not fetched"),
            ("javascript:alert(1)", "javascript: is not fetched"),
            ("http://user@example.org/", "a user or password"),
            ("http://a:b@example.org/", "a user or password"),
            ("http://", "is no URL"),
            ("example.org", "is no URL"),
            ("http://256.256.256.256/", "is no URL"),
            ("http://a b/", "is no URL"),
        ] {
            let fault = Target::read(url, None).unwrap_err().to_string();
            assert!(fault.contains(said), "{url}: {fault}");
        }
        let long = format!("http://example.org/{}", "a".repeat(5_000));
        assert!(Target::read(&long, None).unwrap_err().to_string().contains("the limit is 4096"));
    }

    #[test]
    fn a_redirect_is_read_against_where_it_comes_from() {
        let base = Target::read("https://example.org/a/b?c#d", None).unwrap();
        assert_eq!(base.path(), "/a/b?c");
        let beside = Target::read("../x", Some(&base)).unwrap();
        assert_eq!((beside.url.as_str(), beside.same_origin(&base)), ("https://example.org/x", true));
        let plain = Target::read("//example.org:443/", Some(&base)).unwrap();
        assert!(plain.same_origin(&base) && !Target::read("http://example.org/", None).unwrap().same_origin(&base));
    }

    #[test]
    fn entries_are_compared_as_addresses_are() {
        assert_eq!(authority("127.0.0.1:8888").as_deref(), Some("127.0.0.1:8888"));
        assert_eq!(authority("Search.LAN:80").as_deref(), Some("search.lan:80"));
        assert_eq!(authority("[::1]:8080").as_deref(), Some("[::1]:8080"));
        for wrong in ["127.0.0.1", "http://a:80", "a:0", "a:99999", "*:80", ":80", ""] {
            assert_eq!(authority(wrong), None, "{wrong}");
        }
        assert_eq!(Target::read("http://[::1]:8080/", None).unwrap().authority(), "[::1]:8080");
    }
}
