//! Networks, ports, routers, floating IPs and security groups: Neutron's rules, and the tables that the switch obeys.
//!
//! Every rule is a function over a connection and the caller's [`Context`](crate::Context): it runs inside one
//! `store.read` or `store.write`, so that several rules (a server and its ports, say) are one transaction.

mod errors;
mod ipam;
mod prefixes;
mod ranges;
mod rows;

pub mod address_scopes;
pub mod bootstrap;
pub mod compile;
pub mod default_rules;
pub mod floating_ips;
pub mod inventory;
pub mod networks;
pub mod ports;
pub mod quotas;
pub mod rbac;
mod reconcile;
pub mod routers;
pub mod security_groups;
pub mod security_rules;
pub mod subnet_pools;
pub mod subnets;
pub mod tags;
#[cfg(test)]
mod tests;

pub use bootstrap::bootstrap;
pub use compile::compile;
pub use ipam::FixedIp;
pub use ipnet::IpNet;
pub use networks::available_networks;
pub use ranges::Pool;
pub use reconcile::{WORKER, spawn, wait_for_server};
pub use rows::{Meta, Where};
pub use rusqlite::Connection;

use crate::policy::{Rule, Who, rule};

/// Who may do what.
pub const POLICY: &[Rule] = &[
    rule("networks", "list", Who::Reader),
    rule("networks", "create", Who::Member),
    rule("networks", "update", Who::Member),
    rule("networks", "delete", Who::Member),
    rule("subnets", "list", Who::Reader),
    rule("subnets", "create", Who::Member),
    rule("subnets", "update", Who::Member),
    rule("subnets", "delete", Who::Member),
    rule("ports", "list", Who::Reader),
    rule("ports", "create", Who::Member),
    rule("ports", "update", Who::Member),
    rule("ports", "delete", Who::Member),
    rule("routers", "list", Who::Reader),
    rule("routers", "create", Who::Member),
    rule("routers", "update", Who::Member),
    rule("routers", "delete", Who::Member),
    rule("routers", "add_interface", Who::Member),
    rule("routers", "remove_interface", Who::Member),
    rule("floatingips", "list", Who::Reader),
    rule("floatingips", "create", Who::Member),
    rule("floatingips", "update", Who::Member),
    rule("floatingips", "delete", Who::Member),
    rule("security_groups", "list", Who::Reader),
    rule("security_groups", "create", Who::Member),
    rule("security_groups", "update", Who::Member),
    rule("security_groups", "delete", Who::Member),
    rule("security_group_rules", "list", Who::Reader),
    rule("security_group_rules", "create", Who::Member),
    rule("security_group_rules", "delete", Who::Member),
    rule("default_security_group_rules", "list", Who::Reader),
    rule("default_security_group_rules", "create", Who::Admin),
    rule("default_security_group_rules", "delete", Who::Admin),
    rule("rbac_policies", "list", Who::Reader),
    rule("rbac_policies", "create", Who::Member),
    rule("rbac_policies", "update", Who::Member),
    rule("rbac_policies", "delete", Who::Member),
    rule("subnetpools", "list", Who::Reader),
    rule("subnetpools", "create", Who::Member),
    rule("subnetpools", "update", Who::Member),
    rule("subnetpools", "delete", Who::Member),
    rule("subnetpools", "add_prefixes", Who::Member),
    rule("subnetpools", "remove_prefixes", Who::Member),
    rule("subnetpools", "onboard_network_subnets", Who::Member),
    rule("address_scopes", "list", Who::Reader),
    rule("address_scopes", "create", Who::Member),
    rule("address_scopes", "update", Who::Member),
    rule("address_scopes", "delete", Who::Member),
    rule("network_tags", "list", Who::Reader),
    rule("network_tags", "update", Who::Member),
    rule("network_quotas", "show", Who::Reader),
    rule("network_quotas", "list", Who::Admin),
    rule("network_quotas", "update", Who::Admin),
    rule("network_agents", "list", Who::Admin),
    rule("network_ip_availability", "list", Who::Admin),
    rule("network_zones", "list", Who::Reader),
];

/// Tables.
pub const SCHEMA: &str = include_str!("schema.sql");
