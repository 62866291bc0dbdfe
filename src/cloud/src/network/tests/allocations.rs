//! Whatever is asked in whatever order: no address is given twice, and all are free in the end.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::network::ports::NetRequest;
use crate::network::{floating_ips, ipam, ranges};

#[derive(Debug, Clone)]
enum Step {
    Port(usize),
    PortAt(usize, u8),
    Server(usize),
    Move(usize, u8),
    DeletePort(usize),
    ReleaseServer(usize),
    Floating,
    Attach(usize, usize),
    DeleteFloating(usize),
    Gateway(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2usize).prop_map(Step::Port),
        2 => (0..2usize, any::<u8>()).prop_map(|(n, last)| Step::PortAt(n, last % 20)),
        3 => (0..2usize).prop_map(Step::Server),
        3 => (any::<usize>(), any::<u8>()).prop_map(|(p, last)| Step::Move(p, last % 20)),
        3 => any::<usize>().prop_map(Step::DeletePort),
        1 => any::<usize>().prop_map(Step::ReleaseServer),
        2 => Just(Step::Floating),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(f, p)| Step::Attach(f, p)),
        1 => any::<usize>().prop_map(Step::DeleteFloating),
        1 => (0..2usize, any::<bool>()).prop_map(|(r, on)| Step::Gateway(r, on)),
    ]
}

struct World {
    bench: Bench,
    ctx: Context,
    networks: Vec<(Network, Subnet)>,
    routers: Vec<Router>,
    ports: Vec<Uuid>,
    servers: Vec<Uuid>,
    floating: Vec<Uuid>,
}

impl World {
    fn new() -> Self {
        let bench = Bench::new();
        let ctx = member("a");
        // Small ranges, so that they run out.
        let networks = vec![
            bench.plain(&ctx, "n", "10.0.0.0/28"),
            bench.plain(&ctx, "m", "10.0.1.0/29"),
        ];
        let routers: Vec<Router> = networks
            .iter()
            .map(|(_, subnet)| {
                let router = bench.router(&ctx, true);
                bench.plug(&ctx, &router, subnet);
                router
            })
            .collect();
        World {
            bench,
            ctx,
            networks,
            routers,
            ports: vec![],
            servers: vec![],
            floating: vec![],
        }
    }

    /// What is refused is undone, as the store would.
    fn run(&mut self, step: &Step) {
        self.bench.conn.execute_batch("SAVEPOINT step").unwrap();
        let done = self.attempt(step);
        let end = if done.is_ok() {
            "RELEASE step"
        } else {
            "ROLLBACK TO step; RELEASE step"
        };
        self.bench.conn.execute_batch(end).unwrap();
        if let Err(error) = done {
            assert!(!matches!(error, Error::Internal(_)), "{step:?}: {error}");
        }
    }

    fn attempt(&mut self, step: &Step) -> Result<()> {
        let pick = |from: &[Uuid], index: usize| from.get(index % from.len().max(1)).copied();
        let conn = &self.bench.conn;
        let last = |network: usize, last: u8| at(&format!("10.0.{network}.{last}"));
        match step {
            Step::Port(n) => {
                let port = self
                    .bench
                    .try_port(&self.ctx, port_fields(&self.networks[*n].0))?;
                self.ports.push(port.id);
            }
            Step::PortAt(n, l) => {
                let fixed_ips = Some(vec![last(*n, *l)]);
                let fields = ports::Fields {
                    fixed_ips,
                    ..port_fields(&self.networks[*n].0)
                };
                self.ports.push(self.bench.try_port(&self.ctx, fields)?.id);
            }
            Step::Server(n) => {
                let server = Uuid::new_v4();
                let network = Some(self.networks[*n].0.meta.id);
                let request = NetRequest {
                    network,
                    ..Default::default()
                };
                ports::create_for_server(conn, &self.ctx, server, &request, &[])?;
                self.servers.push(server);
            }
            Step::Move(p, l) => {
                let Some(port) = pick(&self.ports, *p) else {
                    return Ok(());
                };
                let subnet = FixedIpRequest {
                    subnet: ports::fetch(conn, port)?.fixed_ips.first().map(|a| a.subnet),
                    ip: None,
                };
                let network = usize::from(ports::fetch(conn, port)?.network_id != self.networks[0].0.meta.id);
                let fields = ports::Fields {
                    fixed_ips: Some(vec![last(network, *l), subnet]),
                    ..Default::default()
                };
                ports::update(conn, &self.ctx, port, &fields)?;
            }
            Step::DeletePort(p) => {
                let Some(port) = pick(&self.ports, *p) else {
                    return Ok(());
                };
                ports::delete(conn, &self.ctx, port)?;
                self.ports.retain(|other| *other != port);
            }
            Step::ReleaseServer(s) => {
                let Some(server) = pick(&self.servers, *s) else {
                    return Ok(());
                };
                ports::release_for_server(conn, server)?;
                self.servers.retain(|other| *other != server);
            }
            Step::Floating => {
                let fields = floating_ips::Fields {
                    network_id: Some(self.bench.external),
                    ..Default::default()
                };
                self.floating
                    .push(floating_ips::create(conn, &self.ctx, &fields)?.meta.id);
            }
            Step::Attach(f, p) => {
                let (Some(floating), Some(port)) = (pick(&self.floating, *f), pick(&self.ports, *p)) else {
                    return Ok(());
                };
                let fields = floating_ips::Fields {
                    port_id: Some(Some(port)),
                    ..Default::default()
                };
                floating_ips::update(conn, &self.ctx, floating, &fields)?;
            }
            Step::DeleteFloating(f) => {
                let Some(floating) = pick(&self.floating, *f) else {
                    return Ok(());
                };
                floating_ips::delete(conn, &self.ctx, floating)?;
                self.floating.retain(|other| *other != floating);
            }
            Step::Gateway(r, on) => {
                let request = GatewayRequest {
                    network: self.bench.external,
                    enable_snat: None,
                    fixed_ips: None,
                };
                let gateway = Some(on.then_some(request));
                let fields = routers::Fields {
                    gateway,
                    ..Default::default()
                };
                let id = self.routers[*r].meta.id;
                routers::update(conn, &self.bench.config, &self.ctx, id, &fields)?;
            }
        }
        Ok(())
    }

    /// Every address belongs to one port, is in its subnet, and every port knows exactly its own.
    fn check(&self) {
        let conn = &self.bench.conn;
        let mut seen = HashSet::new();
        let mut told = 0;
        for (owner, address) in ipam::all(conn).unwrap() {
            assert!(seen.insert((address.subnet, address.ip)), "{address:?} twice");
            let subnet = subnets::fetch(conn, address.subnet).unwrap();
            assert!(ranges::is_host(subnet.cidr, address.ip));
            assert!(ports::fetch(conn, owner).unwrap().fixed_ips.contains(&address));
        }
        let mut macs = HashSet::new();
        for port in ports::list(conn, &admin(), &Default::default()).unwrap() {
            told += port.fixed_ips.len();
            assert!(macs.insert((port.network_id, port.mac)));
        }
        assert_eq!(told, seen.len());
    }

    fn end(self) {
        let conn = &self.bench.conn;
        for floating in &self.floating {
            floating_ips::delete(conn, &self.ctx, *floating).unwrap();
        }
        for server in &self.servers {
            ports::release_for_server(conn, *server).unwrap();
        }
        for port in &self.ports {
            ports::delete(conn, &self.ctx, *port).unwrap();
        }
        for (router, (network, subnet)) in self.routers.iter().zip(&self.networks) {
            let request = InterfaceRequest::Subnet(subnet.meta.id);
            routers::remove_interface(conn, &self.ctx, router.meta.id, request).unwrap();
            routers::delete(conn, &self.ctx, router.meta.id).unwrap();
            networks::delete(conn, &self.ctx, network.meta.id).unwrap();
        }
        for table in [
            "ports",
            "network_allocations",
            "port_security_groups",
            "floating_ips",
            "routers",
            "network_status",
        ] {
            assert_eq!(self.bench.count(table), 0, "{table}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_given_twice_and_all_come_back(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
        }
        world.check();
        world.end();
    }
}
