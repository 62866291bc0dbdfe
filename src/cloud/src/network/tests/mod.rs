//! Tests of the rules over a database in memory, and of the reconciler over a whole test cloud.

mod allocations;
mod floating;
mod pools;
mod reconciling;
mod rules;
mod security;
mod servers;
mod sharing;
mod tables;

use std::net::IpAddr;

use rusqlite::Connection;
use uuid::Uuid;

use super::networks::{self, Network};
use super::ports::{self, FixedIpRequest, PortRow};
use super::routers::{self, GatewayRequest, InterfaceRequest, Router};
use super::subnets::{self, Subnet};
use crate::config::External;
use crate::context::Scope;
use crate::{Config, Context, Error, Result};

/// A database with the schema, and the external network.
struct Bench {
    conn: Connection,
    config: Config,
    external: Uuid,
}

fn config() -> Config {
    Config {
        region: "RegionOne".into(),
        public_url: "https://127.0.0.1:8443".into(),
        secrets_dir: "/nonexistent".into(),
        staging_dir: "/nonexistent".into(),
        max_image_bytes: 0,
        max_project_image_bytes: 0,
        node: "node1".into(),
        availability_zone: "nova".into(),
        dns_servers: vec!["192.0.2.53".parse().unwrap()],
        ntp_servers: vec!["192.0.2.123".parse().unwrap()],
        external: Some(External {
            cidr: "203.0.113.0/24".parse().unwrap(),
            tap: "allod0".into(),
        }),
        mtu: 1442,
        accounts: Default::default(),
        encrypt_volumes: true,
        key_lifetime: std::time::Duration::MAX,
        catalogue: Default::default(),
    }
}

fn context(project: &str, roles: &[&str]) -> Context {
    Context {
        scope: Scope::Project {
            id: project.into(),
            domain_id: "default".into(),
        },
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        ..Context::system()
    }
}

/// A member of the project.
fn member(project: &str) -> Context {
    context(project, &["member", "reader"])
}

fn admin() -> Context {
    context("admin", &["admin", "manager", "member", "reader"])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Bench {
    fn new() -> Self {
        let conn = Connection::open_in_memory().unwrap();
        for step in crate::schema::STEPS {
            conn.execute_batch(step.sql).unwrap();
        }
        let config = config();
        super::bootstrap::make_external(&conn, &config, config.external.as_ref().unwrap()).unwrap();
        let external = networks::all(&conn).unwrap().pop().unwrap().meta.id;
        Bench {
            conn,
            config,
            external,
        }
    }

    fn network(&self, ctx: &Context, name: &str) -> Network {
        let fields = networks::Fields {
            name: Some(name.into()),
            ..Default::default()
        };
        networks::create(&self.conn, &self.config, ctx, &fields).unwrap()
    }

    fn subnet(&self, ctx: &Context, network: &Network, cidr: &str) -> Subnet {
        self.try_subnet(ctx, subnet_fields(network, cidr)).unwrap()
    }

    fn try_subnet(&self, ctx: &Context, fields: subnets::Fields) -> Result<Subnet> {
        subnets::create(&self.conn, ctx, &fields)
    }

    /// A network with one subnet.
    fn plain(&self, ctx: &Context, name: &str, cidr: &str) -> (Network, Subnet) {
        let network = self.network(ctx, name);
        let subnet = self.subnet(ctx, &network, cidr);
        (network, subnet)
    }

    fn port(&self, ctx: &Context, network: &Network) -> PortRow {
        self.try_port(ctx, port_fields(network)).unwrap()
    }

    fn try_port(&self, ctx: &Context, fields: ports::Fields) -> Result<PortRow> {
        ports::create(&self.conn, ctx, &fields)
    }

    fn router(&self, ctx: &Context, gateway: bool) -> Router {
        let gateway = gateway.then_some(Some(GatewayRequest {
            network: self.external,
            enable_snat: None,
            fixed_ips: None,
        }));
        let fields = routers::Fields {
            gateway,
            ..Default::default()
        };
        routers::create(&self.conn, &self.config, ctx, &fields).unwrap()
    }

    fn plug(&self, ctx: &Context, router: &Router, subnet: &Subnet) -> routers::Interface {
        routers::add_interface(
            &self.conn,
            ctx,
            router.meta.id,
            InterfaceRequest::Subnet(subnet.meta.id),
        )
        .unwrap()
    }

    fn count(&self, table: &str) -> i64 {
        self.conn
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
            .unwrap()
    }
}

fn subnet_fields(network: &Network, cidr: &str) -> subnets::Fields {
    subnets::Fields {
        network_id: Some(network.meta.id),
        cidr: Some(cidr.parse().unwrap()),
        ..Default::default()
    }
}

fn port_fields(network: &Network) -> ports::Fields {
    ports::Fields {
        network_id: Some(network.meta.id),
        ..Default::default()
    }
}

fn at(text: &str) -> FixedIpRequest {
    FixedIpRequest {
        subnet: None,
        ip: Some(ip(text)),
    }
}

/// The name of the error that clients see.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>) -> &'static str {
    match result {
        Err(Error::Named { name, .. }) => name,
        Err(Error::BadRequest(_)) => "HTTPBadRequest",
        Err(Error::Forbidden(_)) => "PolicyNotAuthorized",
        other => panic!("not refused: {other:?}"),
    }
}
