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
