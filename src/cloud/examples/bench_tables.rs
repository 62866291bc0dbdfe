//! `cargo run --release -p allod-cloud --features testing --example bench_tables`: how long the switch's tables of 1,000
//! servers' ports take to compile, with metadata of 12 KiB each that is kept from the compilation before.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use cloud::Error;
use cloud::network::ports::{self, NetRequest};
use cloud::network::quotas::{self, Limits, Resource};
use cloud::network::{Connection, Where, compile, networks, subnets};
use model::net::{Document, Metadata};
use uuid::Uuid;

const PORTS: usize = 1000;
const ROUNDS: usize = 50;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let test = cloud::testing::cloud().await;
    let ctx = test.context("admin", "admin", "admin").await;
    let config = test.cloud.config.clone();
    let owner = ctx.clone();
    let network = test
        .cloud
        .store
        .write("bench", move |conn| {
            let limits = Limits::from([(Resource::Port, -1)]);
            quotas::update(conn, &owner, owner.project()?, &limits)?;
            let network = networks::create(conn, &config, &owner, &networks::Fields::default())?
                .meta
                .id;
            let subnet = subnets::Fields {
                network_id: Some(network),
                cidr: "10.0.0.0/16".parse().ok(),
                ..Default::default()
            };
            subnets::create(conn, &owner, &subnet)?;
            Ok::<_, Error>(network)
        })
        .await?;
    let mut servers = HashSet::new();
    let start = Instant::now();
    for _ in 0..PORTS {
        let (server, owner) = (Uuid::new_v4(), ctx.clone());
        servers.insert(server);
        let plug = move |conn: &Connection| {
            let request = NetRequest {
                network: Some(network),
                ..Default::default()
            };
            ports::create_for_server(conn, &owner, server, &request, &[])
        };
        test.cloud.store.write("bench", plug).await?;
    }
    let plugged = start.elapsed().as_secs_f64() * 1e3 / PORTS as f64;
    println!("bench port_create_for_server_mean {plugged:.3} ms");

    let config = test.cloud.config.clone();
    let mut times: Vec<[f64; 3]> = Vec::new();
    for _ in 0..ROUNDS {
        let (config, ctx, servers) = (config.clone(), ctx.clone(), servers.clone());
        let round = test.cloud.store.read(move |conn| {
            let document = Document {
                content_type: "application/json".into(),
                body: vec![b'x'; 12 << 10],
            };
            let kept = Metadata {
                documents: BTreeMap::from([("/openstack/latest/meta_data.json".to_owned(), document)]),
                ..Default::default()
            };
            let start = Instant::now();
            let tables = compile::compile(conn, &config, &mut |_, _, _| Ok(Some(kept.clone())))?;
            let compiled = start.elapsed();
            assert_eq!(tables.ports.len(), PORTS);
            let start = Instant::now();
            assert_eq!(ports::list(conn, &ctx, &Where::default())?.len(), PORTS);
            let listed = start.elapsed();
            let start = Instant::now();
            assert_eq!(ports::addresses_of_all(conn, &servers)?.len(), PORTS);
            let addresses = start.elapsed();
            Ok::<_, Error>([compiled, listed, addresses].map(|time| time.as_secs_f64() * 1e3))
        });
        times.push(round.await?);
    }
    for (at, name) in [
        "tables_compile_1000_ports",
        "ports_list_1000",
        "addresses_of_1000_servers",
    ]
    .iter()
    .enumerate()
    {
        let mut times: Vec<f64> = times.iter().map(|round| round[at]).collect();
        times.sort_by(f64::total_cmp);
        println!("bench {name}_p50 {:.1} ms", times[ROUNDS / 2]);
        println!("bench {name}_max {:.1} ms", times[ROUNDS - 1]);
    }
    Ok(())
}
