//! A cloud in a temporary folder, with drivers that do nothing but remember, for trying clients out:
//! `cargo run -p allod-api --example dev_server -- 127.0.0.1:8774`. It prints the credentials and serves until Ctrl-C.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: SocketAddr = std::env::args()
        .nth(1)
        .as_deref()
        .unwrap_or("127.0.0.1:8774")
        .parse()?;
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let listener = TcpListener::bind(address).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let test = cloud::testing::cloud_at(&url).await;
    cloud::network::bootstrap(&test.cloud).await?;
    println!("export OS_AUTH_URL={url}/identity/v3 OS_IDENTITY_API_VERSION=3 OS_REGION_NAME=RegionOne");
    println!(
        "export OS_USERNAME=admin OS_PASSWORD={}",
        cloud::testing::ADMIN_PASSWORD
    );
    println!("export OS_PROJECT_NAME=admin OS_USER_DOMAIN_ID=default OS_PROJECT_DOMAIN_ID=default");
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    cloud::network::bootstrap(&test.cloud).await?;
    cloud::image::recover(&test.cloud).await?;
    let loops = [
        cloud::identity::spawn(test.cloud.clone()),
        cloud::image::spawn(test.cloud.clone()),
        cloud::network::spawn(test.cloud.clone()),
        cloud::compute::spawn(test.cloud.clone()),
        cloud::volume::spawn(test.cloud.clone()),
        cloud::compute::limits::spawn(test.cloud.clone()),
    ];
    api::serve(
        vec![listener],
        None,
        api::AppState::new(test.cloud.clone()),
        shutdown,
    )
    .await?;
    loops.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}
