//! The reconciler, over a whole test cloud.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::driver::DriverError;
use crate::network::ports::NetRequest;
use crate::testing::{TestCloud, cloud};
use crate::worker::Activity;
use crate::{Cloud, network};

const PATIENCE: Duration = Duration::from_secs(30);

async fn write<T: Send + 'static>(cloud: &Cloud, f: impl Fn(&Connection) -> Result<T> + Send + 'static) -> T {
    cloud.store.write("test", f).await.unwrap()
}

/// A server's port on a new network.
async fn plugged(test: &TestCloud, ctx: &Context) -> (Uuid, PortRow) {
    let (config, ctx, server) = (test.cloud.config.clone(), ctx.clone(), Uuid::new_v4());
    let port = write(&test.cloud, move |conn| {
        let network = networks::create(conn, &config, &ctx, &networks::Fields::default())?;
        subnets::create(conn, &ctx, &subnet_fields(&network, "10.0.0.0/24"))?;
        let request = NetRequest {
            network: Some(network.meta.id),
            ..Default::default()
        };
        ports::create_for_server(conn, &ctx, server, &request, &[])
    });
    (server, port.await)
}

fn applies(test: &TestCloud) -> usize {
    test.drivers
        .state()
        .calls
        .iter()
        .filter(|call| call.starts_with("apply"))
        .count()
}

/// Waits for events until the condition holds.
async fn until(cloud: &Arc<Cloud>, mut holds: impl AsyncFnMut() -> bool) {
    let mut events = cloud.store.subscribe();
    let wait = async {
        while !holds().await {
            let _ = events.recv().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("the condition holds in the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_active_once_the_switch_has_it() {
    let test = cloud().await;
    let ctx = test.context("u", "p", "member").await;
    let (server, port) = plugged(&test, &ctx).await;
    assert_eq!(port.status(), "DOWN");
    let worker = network::spawn(test.cloud.clone());
    network::wait_for_server(&test.cloud, server, PATIENCE)
        .await
        .unwrap();
    let tables = test.drivers.state().tables.clone().unwrap();
    assert!(tables.ports.contains_key(&port.id));
    let stored = test
        .cloud
        .store
        .read(move |conn| ports::fetch(conn, port.id))
        .await
        .unwrap();
    assert_eq!(stored.status(), "ACTIVE");
    assert_eq!(
        stored.meta.revision, port.meta.revision,
        "a status is no revision"
    );

    let down = ports::Fields {
        admin_state_up: Some(false),
        ..Default::default()
    };
    write(&test.cloud, move |conn| ports::update(conn, &ctx, port.id, &down)).await;
    until(&test.cloud, async || {
        !test
            .cloud
            .store
            .read(move |conn| ports::is_active(conn, port.id))
            .await
            .unwrap()
    })
    .await;
    write(&test.cloud, move |conn| ports::release_for_server(conn, server)).await;
    let left: i64 = test
        .cloud
        .store
        .read(|conn| {
            Ok::<_, Error>(conn.query_row("SELECT count(*) FROM network_status", [], |row| row.get(0))?)
        })
        .await
        .unwrap();
    assert_eq!(left, 0);
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_fails_is_tried_again_and_said_so() {
    let test = cloud().await;
    let ctx = test.context("u", "p", "member").await;
    test.drivers
        .fail_next("apply", DriverError::Failed("no switch".into()));
    let (server, _) = plugged(&test, &ctx).await;
    let worker = network::spawn(test.cloud.clone());
    let failed = async {
        loop {
            let found = test
                .cloud
                .workers
                .list()
                .into_iter()
                .find(|w| w.name == network::WORKER);
            match found.map(|w| w.activity) {
                Some(Activity::Failed { error, .. }) => return error,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, failed).await.unwrap();
    assert!(error.contains("no switch"), "{error}");
    network::wait_for_server(&test.cloud, server, PATIENCE)
        .await
        .unwrap();
    assert_eq!(applies(&test), 2);
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_rise_over_restarts_and_nothing_is_sent_twice() {
    let test = cloud().await;
    let ctx = test.context("u", "p", "member").await;
    let mut last = 0;
    for round in 1..=3 {
        let (server, _) = plugged(&test, &ctx).await;
        let worker = network::spawn(test.cloud.clone());
        network::wait_for_server(&test.cloud, server, PATIENCE)
            .await
            .unwrap();
        let generation = test.drivers.state().tables.as_ref().unwrap().generation;
        assert!(generation > last);
        last = generation;
        assert_eq!(applies(&test), round);
        worker.abort();
        let _ = worker.await;
    }
}
