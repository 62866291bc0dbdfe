use std::io::{Read, Write};
use std::time::Duration;

use super::*;

async fn start(
    limits: Limits,
) -> (
    SocketAddr,
    CancellationToken,
    cloud::testing::TestCloud,
    tokio::task::JoinHandle<io::Result<()>>,
) {
    let test = cloud::testing::cloud().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let state = AppState::new(test.cloud.clone());
    let server = tokio::spawn(serve_with(vec![listener], None, state, shutdown.clone(), limits));
    (address, shutdown, test, server)
}

/// Sends these bytes and reads until the server closes.
async fn talk(address: SocketAddr, bytes: &'static [u8]) -> String {
    tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut out = Vec::new();
        let _ = stream.read_to_end(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_carry_a_request_id_and_shutdown_ends_the_server() {
    let (address, shutdown, _test, server) = start(Limits::default()).await;
    let answer = talk(
        address,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("x-openstack-request-id: req-"), "{answer}");
    shutdown.cancel();
    server.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_nothing_or_half_a_head_is_dropped() {
    let short = Duration::from_millis(50);
    let limits = Limits {
        head: short,
        idle: short,
        drain: short,
        ..Limits::default()
    };
    let (address, shutdown, _test, server) = start(limits).await;
    assert!(!talk(address, b"").await.contains("200"));
    assert!(
        !talk(address, b"GET /healthz HTTP/1.1\r\nHos")
            .await
            .contains("200")
    );
    shutdown.cancel();
    server.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_cannot_take_all_connections() {
    let limits = Limits {
        connections_per_address: 1,
        ..Limits::default()
    };
    let (address, shutdown, _test, server) = start(limits).await;
    let held = tokio::net::TcpStream::connect(address).await.unwrap();
    // Either the held connection or this one is over the limit; one of both is closed without an answer.
    let second = talk(
        address,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(second, "");
    drop(held);
    shutdown.cancel();
    server.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_over_tls_and_many_requests_on_one_connection() {
    let test = cloud::testing::cloud().await;
    let (server_tls, client_tls) = tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let state = AppState::new(test.cloud.clone());
    let server = tokio::spawn(serve(vec![listener], Some(server_tls), state, shutdown.clone()));

    let stream = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(client_tls);
    let stream = connector
        .connect("localhost".try_into().unwrap(), stream)
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let requests = (0..50).map(|_| {
        let mut client = client.clone();
        async move {
            let request = hyper::Request::get("https://localhost/healthz")
                .body(String::new())
                .unwrap();
            client.send_request(request).await.unwrap().status()
        }
    });
    let answers = futures::future::join_all(requests).await;
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    // The end of the server is told to the client, and waits for no idle connection.
    shutdown.cancel();
    server.await.unwrap().unwrap();
    let _ = connection.await;
}

/// A server and a client that trusts its certificate.
fn tls() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    (Arc::new(server), Arc::new(client))
}
