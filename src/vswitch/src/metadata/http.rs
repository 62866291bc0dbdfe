//! As much of HTTP/1.1 (RFC 9112) as the metadata service needs: GET and HEAD of documents and folder listings.

use std::collections::BTreeSet;

use model::net::Metadata;

/// The longest request head.
pub const MAX_HEAD: usize = 8192;
const MAX_HEADERS: usize = 100;

/// A request, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    method: Method,
    path: String,
    /// The connection stays open behind the answer.
    pub keep_alive: bool,
    /// How many bytes of the input it took.
    pub length: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Method {
    Get,
    Head,
    Other,
}

/// What the input is.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not a whole head yet.
    Incomplete,
    /// A request.
    Request(Request),
    /// No HTTP, or too long: answer with this status and close.
    Bad(u16),
}

/// Reads a request from the beginning of the input.
pub fn parse(input: &[u8]) -> Parsed {
    let window = &input[..input.len().min(MAX_HEAD)];
    let Some(end) = window.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if input.len() >= MAX_HEAD {
            Parsed::Bad(431)
        } else {
            Parsed::Incomplete
        };
    };
    let Ok(head) = std::str::from_utf8(&input[..end]) else {
        return Parsed::Bad(400);
    };
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Parsed::Bad(400);
    };
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return Parsed::Bad(505);
    }
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        _ => Method::Other,
    };
    let mut keep_alive = version == "HTTP/1.1" && method != Method::Other;
    for (count, line) in lines.enumerate() {
        let Some((name, value)) = line.split_once(':').filter(|_| count < MAX_HEADERS) else {
            return Parsed::Bad(400);
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close")
            // A body is not read: the connection ends behind the answer.
            || name.eq_ignore_ascii_case("content-length") && value != "0"
            || name.eq_ignore_ascii_case("transfer-encoding")
        {
            keep_alive = false;
        }
    }
    let path = target
        .strip_prefix("http://")
        .map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
    let path = path.split(['?', '#']).next().unwrap_or_default();
    if !path.starts_with('/') {
        return Parsed::Bad(400);
    }
    Parsed::Request(Request {
        method,
        path: path.to_owned(),
        keep_alive,
        length: end + 4,
    })
}

/// The whole response to a request.
pub fn respond(request: &Request, metadata: Option<&Metadata>) -> Vec<u8> {
    let head = request.method == Method::Head;
    if request.method == Method::Other {
        return plain(405, request.keep_alive, head);
    }
    let segments: Vec<&str> = request
        .path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    let path = segments
        .iter()
        .fold(String::new(), |path, segment| path + "/" + segment);
    match metadata {
        Some(metadata) => {
            let path = metadata.resolve(&path);
            if let Some(document) = metadata.documents.get(path.as_ref()) {
                let kind: String = document
                    .content_type
                    .chars()
                    .filter(|c| !c.is_control())
                    .collect();
                return message(200, &kind, &document.body, request.keep_alive, head);
            }
            match listing(metadata, &path) {
                Some(names) => message(
                    200,
                    "text/plain; charset=UTF-8",
                    names.as_bytes(),
                    request.keep_alive,
                    head,
                ),
                None => plain(404, request.keep_alive, head),
            }
        }
        None => plain(404, request.keep_alive, head),
    }
}

/// The names in a folder, one a line. EC2 marks folders with a slash, but not versions: those at the top and under
/// `/openstack`.
fn listing(metadata: &Metadata, folder: &str) -> Option<String> {
    let prefix = format!("{folder}/");
    let versions = folder.is_empty() || folder == "/openstack";
    let mut names: BTreeSet<String> = BTreeSet::new();
    for path in metadata
        .documents
        .range(prefix.clone()..)
        .map(|(path, _)| path)
        .take_while(|p| p.starts_with(&prefix))
    {
        let rest = &path[prefix.len()..];
        match rest.split_once('/') {
            Some((name, _)) if versions => names.insert(name.to_owned()),
            Some((name, _)) => names.insert(format!("{name}/")),
            None => names.insert(rest.to_owned()),
        };
    }
    for (alias, _) in metadata
        .aliases
        .iter()
        .filter(|(alias, _)| alias.starts_with(&prefix))
    {
        let name = &alias[prefix.len()..];
        if !name.contains('/') {
            names.insert(if versions {
                name.to_owned()
            } else {
                format!("{name}/")
            });
        }
    }
    for alias in metadata
        .aliases
        .keys()
        .filter_map(|alias| alias.strip_prefix(&prefix))
    {
        match alias.contains('/') {
            true => {}
            false if versions => drop(names.insert(alias.to_owned())),
            false => drop(names.insert(format!("{alias}/"))),
        }
    }
    // What is both a document and a folder is a folder in its parent's list.
    let all: Vec<&str> = names
        .iter()
        .filter(|name| !names.contains(&format!("{name}/")))
        .map(String::as_str)
        .collect();
    if all.is_empty() {
        None
    } else {
        Some(all.join("\n"))
    }
}

/// A response that only says its status.
pub fn plain(status: u16, keep_alive: bool, head: bool) -> Vec<u8> {
    let text = format!("{status} {}\n", reason(status));
    message(
        status,
        "text/plain; charset=UTF-8",
        text.as_bytes(),
        keep_alive,
        head,
    )
}

fn message(status: u16, kind: &str, body: &[u8], keep_alive: bool, head: bool) -> Vec<u8> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let more = match status {
        405 => "Allow: GET, HEAD\r\n",
        429 => "Retry-After: 1\r\n",
        _ => "",
    };
    let mut bytes = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: {connection}\r\n{more}\r\n",
        reason(status),
        body.len()
    )
    .into_bytes();
    if !head {
        bytes.extend_from_slice(body);
    }
    bytes
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use model::net::Document;
    use proptest::prelude::*;

    use super::*;

    fn metadata() -> Metadata {
        let document = |body: &str| Document {
            content_type: "text/plain".into(),
            body: body.into(),
        };
        let documents = [
            ("/openstack/latest/meta_data.json", "{}"),
            ("/openstack/latest/user_data", "#!"),
            ("/openstack/2018-08-27/meta_data.json", "{}"),
            ("/latest/meta-data/instance-id", "i-1"),
            ("/latest/meta-data/public-keys", "0=key"),
            ("/latest/meta-data/public-keys/0/openssh-key", "ssh-ed25519 A"),
            ("/latest/user-data", "#!"),
        ];
        Metadata {
            documents: documents
                .iter()
                .map(|(path, body)| ((*path).to_owned(), document(body)))
                .collect(),
            aliases: [
                ("/2009-04-04", "/latest"),
                ("/openstack/2012-08-10", "/openstack/latest"),
            ]
            .map(|(alias, folder)| (alias.to_owned(), folder.to_owned()))
            .into(),
        }
    }

    fn get(request: &str) -> String {
        match parse(request.as_bytes()) {
            Parsed::Request(request) => String::from_utf8(respond(&request, Some(&metadata()))).unwrap(),
            other => format!("{other:?}"),
        }
    }

    fn body(path: &str) -> String {
        let answer = get(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    #[test]
    fn documents_and_listings_are_found() {
        assert_eq!(body("/"), "2009-04-04\nlatest\nopenstack");
        assert_eq!(body("/openstack"), "2012-08-10\n2018-08-27\nlatest");
        assert_eq!(body("/openstack/2012-08-10"), "meta_data.json\nuser_data");
        assert_eq!(body("/openstack/2012-08-10/user_data"), "#!");
        assert_eq!(body("/2009-04-04/meta-data/instance-id"), "i-1");
        assert_eq!(body("/openstack/latest/"), "meta_data.json\nuser_data");
        assert_eq!(body("/latest/"), "meta-data/\nuser-data");
        assert_eq!(body("/latest/meta-data/"), "instance-id\npublic-keys/");
        assert_eq!(body("/latest/meta-data/public-keys/"), "0=key");
        assert_eq!(body("/latest/meta-data/public-keys/0/"), "openssh-key");
        assert_eq!(body("http://169.254.169.254//latest/user-data?x=1"), "#!");
    }

    #[test]
    fn the_rest_is_refused_by_status() {
        assert!(get("GET /nothing HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(get("GET /latest/meta HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        let put = get("PUT /latest/api/token HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
        assert!(put.starts_with("HTTP/1.1 405 ") && put.contains("\r\nAllow: GET, HEAD\r\n"));
        assert!(get("HEAD /latest/user-data HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
        assert_eq!(parse(b"GET / SPDY\r\n\r\n"), Parsed::Bad(505));
        assert_eq!(parse(b"GET\r\n\r\n"), Parsed::Bad(400));
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Parsed::Incomplete);
        assert_eq!(parse(&[b'a'; MAX_HEAD]), Parsed::Bad(431));
    }

    proptest! {
        #[test]
        fn any_input_is_answered_without_a_panic(input in proptest::collection::vec(any::<u8>(), 0..200), path in "[ -~]{0,60}") {
            parse(&input);
            if let Parsed::Request(request) = parse(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()) {
                respond(&request, Some(&metadata()));
            }
        }
    }
}
