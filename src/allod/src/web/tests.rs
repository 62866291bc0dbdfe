//! Servers of all kinds on loopback, which the operator's list allows where a test needs it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cloud::driver::{DriverError, Web as _};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::resolve::Resolve;
use super::rules::Rules;
use super::{Limits, Refusal, Web};

/// Names and their addresses, and who was asked for.
#[derive(Default)]
struct Names {
    known: BTreeMap<String, Vec<Vec<IpAddr>>>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Resolve for Names {
    /// A name with several answers gives one after the other, as a name server does that rebinds.
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut asked = self.asked.lock().unwrap();
        let before = asked.iter().filter(|other| *other == name).count();
        asked.push(name.to_owned());
        let answers = self.known.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(answers[before.min(answers.len() - 1)].clone())
    }
}

fn names(known: &[(&str, &[&[&str]])]) -> Arc<Names> {
    let known = known.iter().map(|(name, answers)| {
        let answers = answers
            .iter()
            .map(|addresses| addresses.iter().map(|address| address.parse().unwrap()).collect())
            .collect();
        ((*name).to_owned(), answers)
    });
    Arc::new(Names {
        known: known.collect(),
        asked: Mutex::default(),
    })
}

fn web(rules: Rules, resolver: Arc<Names>) -> Web {
    Web {
        enabled: true,
        rules,
        limits: Limits {
            resolve: Duration::from_secs(2),
            connect: Duration::from_secs(2),
            answer: Duration::from_secs(2),
            stall: Duration::from_millis(300),
            trickle: 1000,
            whole: Duration::from_secs(20),
            redirects: 3,
            addresses: 2,
        },
        ca_file: None,
        own: Vec::new(),
        resolver,
    }
}

/// A server that answers each request in its own way, and counts connections.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn new<F, A>(answer: F) -> Server
    where
        F: Fn(TcpStream, String) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let answer = answer.clone();
                tokio::spawn(async move {
                    let head = head(&mut stream).await;
                    answer(stream, head).await;
                });
            }
        });
        Server { address, connections }
    }

    /// The same text for every request.
    async fn saying(text: impl Into<String>) -> Server {
        let text = text.into();
        Server::new(move |mut stream, _| {
            let text = text.clone();
            async move {
                let _ = stream.write_all(text.as_bytes()).await;
            }
        })
        .await
    }

    fn uri(&self) -> String {
        format!("http://{}/file", self.address)
    }

    /// Rules that allow this server alone.
    fn allowed(&self) -> Rules {
        Rules {
            ports: vec![80, 443],
            hosts: vec![self.address.to_string().parse().unwrap()],
            ..Rules::default()
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.is_ok_and(|read| read > 0) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

async fn all(web: &Web, uri: &str) -> Result<Vec<u8>, String> {
    let text = |error: DriverError| match error {
        DriverError::BadInput(text) => text,
        other => panic!("{other:?} is not the tenant's to see"),
    };
    let mut file = web.get(uri).await.map_err(text)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = file.bytes.next().await {
        bytes.extend_from_slice(&chunk.map_err(text)?);
    }
    Ok(bytes)
}

fn is(result: Result<Vec<u8>, String>, refusal: Refusal) {
    assert_eq!(result, Err(refusal.to_string()));
}

const OK: &str =
    "HTTP/1.1 200 OK\r\nlast-modified: Fri, 13 Feb 2009 23:31:30 GMT\r\ncontent-length: 5\r\n\r\nbytes";

#[tokio::test]
async fn a_file_comes_whole_with_its_length_or_in_chunks() {
    let heads = Arc::new(Mutex::new(String::new()));
    let kept = heads.clone();
    let server = Server::new(move |mut stream, head| {
        *kept.lock().unwrap() = head;
        async move {
            let _ = stream.write_all(OK.as_bytes()).await;
        }
    })
    .await;
    let fetching = web(server.allowed(), names(&[]));
    let uri = format!("{}?a=b%20c#part", server.uri());
    assert_eq!(all(&fetching, &uri).await.unwrap(), b"bytes");
    let file = fetching.get(&uri).await.unwrap();
    assert_eq!(
        (file.length, file.modified),
        (Some(5), Some(1_234_567_890_000_000))
    );
    let head = heads.lock().unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /file?a=b%20c http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: {}\r\n", server.address)), "{head}");
    assert!(head.contains("accept-encoding: identity\r\n"), "{head}");

    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let server = Server::saying(chunked).await;
    assert_eq!(
        all(&web(server.allowed(), names(&[])), &server.uri())
            .await
            .unwrap(),
        b"abcde"
    );
}

#[tokio::test]
async fn without_the_operators_word_nothing_on_this_host_is_asked() {
    let server = Server::saying(OK).await;
    let port = server.address.port();
    let rules = Rules {
        ports: vec![port],
        ..Rules::default()
    };
    let fetching = web(rules, names(&[]));
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "017700000001",
        "127.1",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "169.254.169.254",
        "[fe80::1]",
        "[fc00::1]",
        "10.0.0.1",
        "100.64.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let uri = format!("http://{host}:{port}/file");
        is(all(&fetching, &uri).await, Refusal::NotAllowed);
        assert!(
            fetching.check(&uri).is_err(),
            "{uri} is refused before anything begins"
        );
    }
    is(
        all(&fetching, &format!("http://localhost:{port}/")).await,
        Refusal::NotAllowed,
    );
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_name_of_a_private_address_is_refused_and_a_public_one_beside_it_is_taken() {
    let server = Server::saying(OK).await;
    let port = server.address.port();
    let rules = Rules {
        ports: vec![port],
        ..Rules::default()
    };
    let resolver = names(&[
        (
            "private.example",
            &[&["127.0.0.1", "10.0.0.1", "::1", "::ffff:127.0.0.1", "fd00::1"]],
        ),
        ("empty.example", &[&[]]),
    ]);
    let fetching = web(rules.clone(), resolver);
    for name in ["private.example", "empty.example", "missing.example"] {
        let uri = format!("http://{name}:{port}/");
        fetching.check(&uri).unwrap();
        is(all(&fetching, &uri).await, Refusal::NotAllowed);
    }
    assert_eq!(server.connections(), 0);
    // Of several addresses only those that may be are tried: 127.0.0.1 by the operator's word, not 127.0.0.2.
    let rules = Rules {
        networks: vec!["127.0.0.1/32".parse().unwrap()],
        ..rules
    };
    let resolver = names(&[("mixed.example", &[&["127.0.0.2", "::1", "127.0.0.1"]])]);
    let bytes = all(&web(rules, resolver), &format!("http://mixed.example:{port}/")).await;
    assert_eq!(bytes.unwrap(), b"bytes");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn what_was_judged_is_what_is_connected_to() {
    // The second answer would be the server; it is never asked for.
    let server = Server::saying(OK).await;
    let port = server.address.port();
    let rules = Rules {
        ports: vec![port],
        // 127.0.0.9 has no listener at this port, and stands for a public server.
        networks: vec!["127.0.0.9/32".parse().unwrap()],
        ..Rules::default()
    };
    let resolver = names(&[("rebinds.example", &[&["127.0.0.9"], &["127.0.0.1"]])]);
    let fetching = web(rules, resolver.clone());
    let refusal = Refusal::Unreachable("rebinds.example".into());
    is(
        all(&fetching, &format!("http://rebinds.example:{port}/")).await,
        refusal,
    );
    assert_eq!(*resolver.asked.lock().unwrap(), ["rebinds.example"]);
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn the_clouds_own_addresses_are_refused_even_in_an_allowed_network() {
    let server = Server::saying(OK).await;
    let port = server.address.port();
    let rules = Rules {
        ports: vec![port],
        networks: vec!["127.0.0.0/8".parse().unwrap()],
        own_hosts: vec!["cloud.example".into()],
        ..Rules::default()
    };
    // 127.0.0.1 is the loopback interface's own address; 127.0.0.3 the one that the cloud's name has.
    let resolver = names(&[
        ("cloud.example", &[&["127.0.0.3"]]),
        ("alias.example", &[&["127.0.0.3", "127.0.0.1"]]),
    ]);
    let fetching = web(rules, resolver);
    for host in ["127.0.0.1", "alias.example", "cloud.example", "127.0.0.3"] {
        is(
            all(&fetching, &format!("http://{host}:{port}/")).await,
            Refusal::NotAllowed,
        );
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn every_redirect_is_judged_as_the_first_uri() {
    let target = Server::saying(OK).await;
    let port = target.address.port();
    let resolver = names(&[("inside.example", &[&["127.0.0.1"]])]);
    for (to, refusal) in [
        (format!("http://127.0.0.1:{port}/"), Refusal::Port(port)),
        ("http://127.0.0.1/".into(), Refusal::NotAllowed),
        ("//127.0.0.1/x".into(), Refusal::NotAllowed),
        (
            "http://169.254.169.254/latest/meta-data/".into(),
            Refusal::NotAllowed,
        ),
        ("http://[::1]/".into(), Refusal::NotAllowed),
        ("http://[::ffff:169.254.169.254]/".into(), Refusal::NotAllowed),
        ("http://2130706433/".into(), Refusal::NotAllowed),
        ("http://0xa9fea9fe/".into(), Refusal::NotAllowed),
        ("http://0x7f.1/".into(), Refusal::NotAllowed),
        ("http://inside.example/".into(), Refusal::NotAllowed),
        ("http://nowhere.example/".into(), Refusal::NotAllowed),
        ("file:///etc/passwd".into(), Refusal::Scheme),
        ("ftp://example.com/".into(), Refusal::Scheme),
        ("http://user:secret@example.com/".into(), Refusal::UserInfo),
        ("http://[".into(), Refusal::NoAnswer("127.0.0.1".into())),
    ] {
        for status in [301, 302, 303, 307, 308] {
            let server = Server::saying(format!(
                "HTTP/1.1 {status} Moved\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"
            ))
            .await;
            let fetching = web(server.allowed(), resolver.clone());
            is(all(&fetching, &server.uri()).await, refusal.clone());
        }
    }
    assert_eq!(target.connections(), 0);
    // No word of where to: nor is there an answer.
    let server = Server::saying("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n").await;
    is(
        all(&web(server.allowed(), resolver), &server.uri()).await,
        Refusal::NoAnswer("127.0.0.1".into()),
    );
}

#[tokio::test]
async fn redirects_are_followed_a_few_times() {
    let server = Server::new(|mut stream, head| async move {
        let left: usize = head
            .split(['/', ' '])
            .nth(2)
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        let answer = match left {
            0 => OK.to_owned(),
            left => format!(
                "HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
                left - 1
            ),
        };
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    let fetching = web(server.allowed(), names(&[]));
    assert_eq!(
        all(&fetching, &format!("http://{}/3", server.address))
            .await
            .unwrap(),
        b"bytes"
    );
    assert_eq!(server.connections(), 4);
    is(
        all(&fetching, &format!("http://{}/4", server.address)).await,
        Refusal::Redirects,
    );
}

#[tokio::test]
async fn what_is_not_a_whole_file_is_an_error() {
    let host = || "127.0.0.1".to_owned();
    let cases: [(&str, Refusal); 9] = [
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            Refusal::Status(host(), 404),
        ),
        (
            "HTTP/1.1 206 Partial\r\ncontent-length: 1\r\n\r\nx",
            Refusal::Status(host(), 206),
        ),
        ("HTTP/1.1 204 No\r\n\r\n", Refusal::Status(host(), 204)),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nbytes",
            Refusal::BrokenOff,
        ),
        ("HTTP/1.1 200 OK\r\n\r\nbytes", Refusal::NoLength),
        (
            "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nbytes",
            Refusal::Compressed,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nbytes",
            Refusal::NoAnswer(host()),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nbytes",
            Refusal::NoAnswer(host()),
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n", Refusal::NoAnswer(host())),
    ];
    for (answer, refusal) in cases {
        let server = Server::saying(answer).await;
        is(
            all(&web(server.allowed(), names(&[])), &server.uri()).await,
            refusal,
        );
    }
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nby";
    let server = Server::saying(chunked).await;
    is(
        all(&web(server.allowed(), names(&[])), &server.uri()).await,
        Refusal::BrokenOff,
    );
    // More than announced is not taken.
    let server = Server::saying("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbytes").await;
    assert_eq!(
        all(&web(server.allowed(), names(&[])), &server.uri())
            .await
            .unwrap(),
        b"byt"
    );
}

#[tokio::test]
async fn heads_are_bounded() {
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(128 * 1024));
    for headers in [many, long] {
        let server = Server::saying(format!(
            "HTTP/1.1 200 OK\r\n{headers}content-length: 5\r\n\r\nbytes"
        ))
        .await;
        let fetched = all(&web(server.allowed(), names(&[])), &server.uri()).await;
        is(fetched, Refusal::NoAnswer("127.0.0.1".into()));
    }
}

#[tokio::test]
async fn slow_servers_are_left() {
    // No head.
    let server = Server::new(|stream, _| async move {
        tokio::time::sleep(Duration::from_secs(30)).await;
        drop(stream);
    })
    .await;
    is(
        all(&web(server.allowed(), names(&[])), &server.uri()).await,
        Refusal::NoAnswer("127.0.0.1".into()),
    );
    // A head byte by byte.
    let server = Server::new(|mut stream, _| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(b"y").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    is(
        all(&web(server.allowed(), names(&[])), &server.uri()).await,
        Refusal::NoAnswer("127.0.0.1".into()),
    );
    // No bytes.
    let server = Server::new(|mut stream, _| async move {
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nbytes")
            .await;
        tokio::time::sleep(Duration::from_secs(30)).await;
    })
    .await;
    is(
        all(&web(server.allowed(), names(&[])), &server.uri()).await,
        Refusal::Slow,
    );
    // A trickle.
    let server = Server::new(|mut stream, _| async move {
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
            .await;
        while stream.write_all(b"b").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    is(
        all(&web(server.allowed(), names(&[])), &server.uri()).await,
        Refusal::Slow,
    );
    // Fast, and without an end.
    let server = Server::new(|mut stream, _| async move {
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        while stream.write_all(b"400\r\n").await.is_ok()
            && stream.write_all(&[b'b'; 1024]).await.is_ok()
            && stream.write_all(b"\r\n").await.is_ok()
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let mut fetching = web(server.allowed(), names(&[]));
    fetching.limits.whole = Duration::from_secs(1);
    is(
        all(&fetching, &server.uri()).await,
        Refusal::TooLong(Duration::from_secs(1)),
    );
}

/// A server with TLS of a CA of its own, and the file of this CA.
async fn tls_server(dir: &std::path::Path, name: &str, answer: String) -> (SocketAddr, std::path::PathBuf) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::pki_types::PrivateKeyDer;

    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let file = dir.join("ca.pem");
    std::fs::write(&file, ca_certificate.pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                head(&mut stream).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    (address, file)
}

#[tokio::test]
async fn certificates_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (address, ca) = tls_server(dir.path(), "vendor.example", OK.to_owned()).await;
    let port = address.port();
    let rules = Rules {
        ports: vec![80, 443, port],
        hosts: vec![
            format!("vendor.example:{port}").parse().unwrap(),
            format!("other.example:{port}").parse().unwrap(),
        ],
        ..Rules::default()
    };
    let resolver = names(&[
        ("vendor.example", &[&["127.0.0.1"]]),
        ("other.example", &[&["127.0.0.1"]]),
    ]);
    let mut fetching = web(rules, resolver);
    let uri = format!("https://vendor.example:{port}/file");
    // Of a CA that nobody here knows.
    let untrusted = all(&fetching, &uri).await.unwrap_err();
    assert!(
        untrusted.starts_with("There is no trusted connection to vendor.example"),
        "{untrusted}"
    );
    fetching.ca_file = Some(ca);
    assert_eq!(all(&fetching, &uri).await.unwrap(), b"bytes");
    let other = all(&fetching, &format!("https://other.example:{port}/file"))
        .await
        .unwrap_err();
    assert!(
        other.starts_with("There is no trusted connection to other.example"),
        "{other}"
    );
    // Nor is plain HTTP taken where TLS was asked for.
    let plain = "HTTP/1.1 302 Found\r\nlocation: http://example.com/\r\ncontent-length: 0\r\n\r\n";
    let (address, ca) = tls_server(dir.path(), "vendor.example", plain.to_owned()).await;
    fetching.ca_file = Some(ca);
    fetching.rules.hosts = vec![format!("vendor.example:{}", address.port()).parse().unwrap()];
    is(
        all(&fetching, &format!("https://vendor.example:{}/", address.port())).await,
        Refusal::Downgrade,
    );
}

#[tokio::test]
async fn switched_off_nothing_is_fetched() {
    let server = Server::saying(OK).await;
    let mut fetching = web(server.allowed(), names(&[]));
    fetching.enabled = false;
    is(all(&fetching, &server.uri()).await, Refusal::Off);
    assert!(fetching.check(&server.uri()).is_err());
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_reader_that_goes_away_closes_the_connection() {
    let (closed, mut was_closed) = tokio::sync::mpsc::channel(1);
    let server = Server::new(move |mut stream, _| {
        let closed = closed.clone();
        async move {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nbytes")
                .await;
            let mut byte = [0];
            let _ = stream.read(&mut byte).await;
            let _ = closed.send(()).await;
        }
    })
    .await;
    let fetching = web(server.allowed(), names(&[]));
    let mut file = fetching.get(&server.uri()).await.unwrap();
    assert!(file.bytes.next().await.is_some());
    drop(file);
    tokio::time::timeout(Duration::from_secs(5), was_closed.recv())
        .await
        .unwrap()
        .unwrap();
}
