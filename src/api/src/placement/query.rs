//! Queries that ask for resources, traits and aggregates.

use cloud::Error;
use cloud::placement::allocations::Amounts;
use cloud::placement::candidates::Request;
use uuid::Uuid;

use super::microversion::Microversion;
use crate::body::Pairs;

fn invalid(key: &str, why: &str) -> Error {
    Error::BadRequest(format!("Invalid query string parameters: {key}: {why}"))
}

/// `VCPU:2,MEMORY_MB:512`.
pub(super) fn resources(key: &str, text: &str) -> Result<Amounts, Error> {
    let mut amounts = Amounts::new();
    for part in text.split(',') {
        let (class, amount) = part
            .split_once(':')
            .ok_or_else(|| invalid(key, "it is a list of CLASS:amount"))?;
        let amount = amount
            .parse::<u64>()
            .ok()
            .filter(|amount| *amount > 0 && i32::try_from(*amount).is_ok());
        let amount = amount.ok_or_else(|| invalid(key, "an amount is a positive number"))?;
        if amounts.insert(class.to_owned(), amount).is_some() {
            return Err(invalid(key, "a class stands there twice"));
        }
    }
    Ok(amounts)
}

/// `in:<id>,<id>`, `!<id>` or an id.
fn aggregates(key: &str, text: &str, request: &mut Request, version: Microversion) -> Result<(), Error> {
    let (forbidden, rest) = match text.strip_prefix('!') {
        Some(rest) if version >= Microversion::NOT_MEMBER_OF => (true, rest),
        Some(_) => return Err(invalid(key, "no id")),
        None => (false, text),
    };
    let list = rest.strip_prefix("in:").unwrap_or(rest);
    if !rest.starts_with("in:") && list.contains(',') {
        return Err(invalid(key, "several ids are written in:<id>,<id>"));
    }
    let ids = list
        .split(',')
        .map(|id| id.parse::<Uuid>().map_err(|_| invalid(key, "no id")))
        .collect::<Result<Vec<_>, _>>()?;
    if forbidden {
        request.not_member_of.extend(ids);
    } else {
        request.member_of.push(ids);
    }
    Ok(())
}

/// `A,B,!C` and, from 1.39 on, `in:A,B`.
fn traits(key: &str, text: &str, request: &mut Request, version: Microversion) -> Result<(), Error> {
    if let Some(list) = text.strip_prefix("in:") {
        if version < Microversion::ANY_TRAITS {
            return Err(invalid(key, "'in:' is of 1.39"));
        }
        request
            .required
            .push(list.split(',').map(str::to_owned).collect());
        return Ok(());
    }
    for name in text.split(',') {
        match name.strip_prefix('!') {
            Some(name) if version >= Microversion::FORBIDDEN => request.forbidden.push(name.to_owned()),
            Some(_) => return Err(invalid(key, "a trait may be forbidden from 1.22 on")),
            None if name.is_empty() => return Err(invalid(key, "an empty name")),
            None => request.required.push(vec![name.to_owned()]),
        }
    }
    if request
        .forbidden
        .iter()
        .any(|name| request.required.contains(&vec![name.clone()]))
    {
        return Err(invalid(key, "a trait is both required and forbidden"));
    }
    Ok(())
}

/// What a key of one group says; the key is without the group's suffix.
pub(super) fn read(
    key: &str,
    value: &str,
    request: &mut Request,
    version: Microversion,
) -> Result<(), Error> {
    match key {
        "resources" => {
            for (class, amount) in resources(key, value)? {
                *request.resources.entry(class).or_default() += amount;
            }
            Ok(())
        }
        "required" => traits(key, value, request, version),
        "member_of" => aggregates(key, value, request, version),
        _ => Err(invalid(key, "it is not known")),
    }
}

/// A key stands once, unless this version lets it stand twice.
pub(super) fn check_twice(pairs: &Pairs, version: Microversion) -> Result<(), Error> {
    for (index, (key, _)) in pairs.0.iter().enumerate() {
        let again = pairs.0[..index].iter().any(|(other, _)| other == key);
        let allowed = (key.starts_with("member_of") && version >= Microversion::MEMBER_OF_TWICE)
            || (key.starts_with("required") && version >= Microversion::ANY_TRAITS);
        if again && !allowed {
            let key: String = key.chars().take(64).collect();
            return Err(invalid(&key, "it stands there twice"));
        }
    }
    Ok(())
}

/// A UUID.
pub(super) fn id(key: &str, value: &str) -> Result<Uuid, Error> {
    value.parse().map_err(|_| invalid(key, "it is not a UUID"))
}

#[cfg(test)]
mod unit {
    use super::*;

    fn read_all(version: u16, list: &[(&str, &str)]) -> Result<Request, Error> {
        let mut request = Request::default();
        for (key, value) in list {
            read(key, value, &mut request, Microversion(version))?;
        }
        Ok(request)
    }

    #[test]
    fn every_part_is_read() {
        let id = Uuid::from_u128(7);
        let request = read_all(
            39,
            &[
                ("resources", "VCPU:2,MEMORY_MB:512"),
                ("required", "A,!B"),
                ("required", "in:C,D"),
                ("member_of", &format!("in:{id},{id}")),
                ("member_of", &format!("!{id}")),
            ],
        )
        .unwrap();
        assert_eq!(request.resources["MEMORY_MB"], 512);
        assert_eq!(request.required.len(), 2);
        assert_eq!(request.forbidden, ["B"]);
        assert_eq!((request.member_of[0].len(), request.not_member_of.len()), (2, 1));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (version, key, value) in [
            (39, "resources", ""),
            (39, "resources", "VCPU"),
            (39, "resources", "VCPU:0"),
            (39, "resources", "VCPU:-1"),
            (39, "resources", "VCPU:1,VCPU:2"),
            (39, "required", ""),
            (39, "required", "A,!A"),
            (21, "required", "!A"),
            (38, "required", "in:A,B"),
            (39, "member_of", "x"),
            (31, "member_of", "!00000000-0000-0000-0000-000000000007"),
            (39, "bogus", "x"),
        ] {
            assert!(
                read_all(version, &[(key, value)]).is_err(),
                "{version} {key}={value}"
            );
        }
    }
}
