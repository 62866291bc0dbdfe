//! Neutron's own names for what can go wrong (neutron-lib's `exceptions`): clients act on them.

use crate::Error;
use crate::error::Kind;

pub(crate) fn named(kind: Kind, name: &'static str, message: impl Into<String>) -> Error {
    Error::Named {
        name,
        kind,
        message: message.into(),
    }
}

pub(crate) fn conflict(name: &'static str, message: impl Into<String>) -> Error {
    named(Kind::Conflict, name, message)
}

pub(crate) fn bad(name: &'static str, message: impl Into<String>) -> Error {
    named(Kind::BadRequest, name, message)
}

pub(crate) fn missing(name: &'static str, message: impl Into<String>) -> Error {
    named(Kind::NotFound, name, message)
}

/// `InvalidInput`, as Neutron words it.
pub(crate) fn invalid(reason: impl std::fmt::Display) -> Error {
    bad("InvalidInput", format!("Invalid input for operation: {reason}."))
}

/// What the table of policies would say, had it a row for this.
pub(crate) fn disallowed(rule: &str) -> Error {
    named(
        Kind::Forbidden,
        "PolicyNotAuthorized",
        format!("({rule}) is disallowed by policy"),
    )
}

pub(crate) fn no_network(id: impl std::fmt::Display) -> Error {
    missing("NetworkNotFound", format!("Network {id} could not be found."))
}

pub(crate) fn no_subnet(id: impl std::fmt::Display) -> Error {
    missing("SubnetNotFound", format!("Subnet {id} could not be found."))
}

pub(crate) fn no_port(id: impl std::fmt::Display) -> Error {
    missing("PortNotFound", format!("Port {id} could not be found."))
}

pub(crate) fn no_router(id: impl std::fmt::Display) -> Error {
    missing("RouterNotFound", format!("Router {id} could not be found"))
}

pub(crate) fn no_floating_ip(id: impl std::fmt::Display) -> Error {
    missing(
        "FloatingIPNotFound",
        format!("Floating IP {id} could not be found"),
    )
}

pub(crate) fn no_group(id: impl std::fmt::Display) -> Error {
    missing(
        "SecurityGroupNotFound",
        format!("Security group {id} does not exist"),
    )
}

pub(crate) fn no_rule(id: impl std::fmt::Display) -> Error {
    missing(
        "SecurityGroupRuleNotFound",
        format!("Security group rule {id} does not exist"),
    )
}
