"""What programs do through openstacksdk: a server in one call, and the cycle that declarative tools live on.

A declarative tool creates a thing, reads it, and later writes the values that it read: nothing may change by that, and
what it reads must hold what it wrote. Usage: sdk.py MEMBER ADMIN IMAGE FLAVOR
"""

import base64
import secrets
import sys
import time

import openstack

member_name, admin_name, image_name, flavor_name = sys.argv[1:]
member, admin = openstack.connect(cloud=member_name), openstack.connect(cloud=admin_name)
# What a write changes by its nature.
TIMES = {"updated_at", "updated", "revision_number"}


def server_in_one_call():
    """create_server(auto_ip=True, wait=True): the answer has an address that can be reached."""
    server = member.create_server(
        "one-call", image=image_name, flavor=flavor_name, network=member_name, auto_ip=True, wait=True, timeout=180,
    )
    assert server.status == "ACTIVE", server
    server = member.get_server(server.id)
    assert server.public_v4.startswith("172.24.4."), server
    addresses = [a for of in server.addresses.values() for a in of]
    assert {a["OS-EXT-IPS:type"] for a in addresses} == {"fixed", "floating"}, addresses
    assert member.delete_server(server.id, wait=True, timeout=180, delete_ips=True)
    left = [f for f in member.network.ips() if f.floating_ip_address == server.public_v4]
    assert not left, left


def show(adapter, path, key):
    answer = adapter.get(path)
    assert answer.status_code == 200, (path, answer.status_code, answer.text)
    body = answer.json()
    return body[key] if key else body


def settled(adapter, path, key, wanted):
    for _ in range(600):
        thing = show(adapter, path, key)
        if wanted is None or thing["status"].lower() == wanted:
            return thing
        assert "error" not in thing["status"].lower(), thing
        time.sleep(0.2)
    raise AssertionError(f"{path} is {thing['status']}, not {wanted}")


class Cycle:
    """One kind of thing: created, read, written with what was read, read again, deleted."""

    def __init__(self, adapter, path, key, fields, writable, method="PUT", status=None):
        self.adapter, self.path, self.key, self.fields = adapter, path, key, fields
        self.writable, self.method, self.status = writable, method, status

    def create(self):
        answer = self.adapter.post(self.path, json={self.key: self.fields})
        assert answer.status_code in (200, 201, 202), (self.path, answer.status_code, answer.text)
        made = answer.json()[self.key]
        self.at = f"{self.path}/{made.get('id') or made['name']}"
        self.id = made.get("id")
        read = settled(self.adapter, self.at, self.key, self.status)
        for name, value in self.fields.items():
            if name in read:
                # Neutron has always shown a subnet pool's prefix lengths as text.
                shown = int(read[name]) if name.endswith("_prefixlen") else read[name]
                assert shown == value, f"{self.at}: {name} was written as {value!r}, and is {read[name]!r}"
        return self

    def write(self):
        before = settled(self.adapter, self.at, self.key, self.status)
        if self.writable:
            body = {self.key: {name: before[name] for name in self.writable}}
            answer = self.adapter.request(self.at, self.method, json=body)
            assert answer.status_code in (200, 202), (self.at, body, answer.status_code, answer.text)
        after = settled(self.adapter, self.at, self.key, self.status)
        changed = {k: (before.get(k), after.get(k)) for k in before.keys() | after.keys()
                   if before.get(k) != after.get(k) and k not in TIMES}
        assert not changed, f"{self.at}: writing what was read changed {changed}"

    def delete(self):
        answer = self.adapter.delete(self.at)
        assert answer.status_code in (200, 202, 204), (self.at, answer.status_code, answer.text)
        for _ in range(300):
            if self.adapter.get(self.at).status_code == 404:
                return
            time.sleep(0.2)
        raise AssertionError(f"{self.at} is still there")


def cycles():
    net, nova, cinder, glance, keys, ident = (
        member.network, member.compute, member.block_storage, member.image, member.key_manager, admin.identity)
    for adapter, version in ((nova, "2.79"), (cinder, "3.60")):
        adapter.default_microversion = version
    external = member.network.find_network("ext-net").id
    image, flavor = member.image.find_image(image_name).id, member.compute.find_flavor(flavor_name).id
    made = []

    def make(*arguments, **named):
        made.append(Cycle(*arguments, **named).create())
        return made[-1].id

    text = {"name": "cycle", "description": "a description"}
    network = make(net, "/networks", "network", {**text, "admin_state_up": True, "port_security_enabled": True},
                   ["name", "description", "admin_state_up", "port_security_enabled", "mtu", "shared"])
    scope = make(net, "/address-scopes", "address_scope", {"name": "cycle", "ip_version": 4}, ["name"])
    make(net, "/subnetpools", "subnetpool",
         {**text, "prefixes": ["10.99.0.0/16"], "default_prefixlen": 26, "min_prefixlen": 24, "max_prefixlen": 28,
          "address_scope_id": scope},
         ["name", "description", "prefixes", "default_prefixlen", "min_prefixlen", "max_prefixlen", "is_default"])
    subnet = make(net, "/subnets", "subnet",
                  {**text, "network_id": network, "ip_version": 4, "cidr": "10.98.0.0/24", "gateway_ip": "10.98.0.1",
                   "allocation_pools": [{"start": "10.98.0.10", "end": "10.98.0.200"}], "enable_dhcp": True,
                   "dns_nameservers": ["192.0.2.53"],
                   "host_routes": [{"destination": "10.97.0.0/24", "nexthop": "10.98.0.254"}]},
                  ["name", "description", "gateway_ip", "allocation_pools", "enable_dhcp", "dns_nameservers",
                   "host_routes"])
    group = make(net, "/security-groups", "security_group", text, ["name", "description"])
    make(net, "/security-group-rules", "security_group_rule",
         {"security_group_id": group, "direction": "ingress", "ethertype": "IPv4", "protocol": "tcp",
          "port_range_min": 80, "port_range_max": 81, "remote_ip_prefix": "10.0.0.0/8", "description": "web"}, [])
    port = make(net, "/ports", "port",
                {**text, "network_id": network, "admin_state_up": True, "security_groups": [group],
                 "fixed_ips": [{"subnet_id": subnet, "ip_address": "10.98.0.20"}],
                 "allowed_address_pairs": [{"ip_address": "10.98.0.99", "mac_address": "02:00:00:00:00:01"}]},
                ["name", "description", "admin_state_up", "security_groups", "fixed_ips", "allowed_address_pairs",
                 "device_id", "device_owner", "port_security_enabled"])
    router = make(net, "/routers", "router", {**text, "admin_state_up": True},
                  ["name", "description", "admin_state_up", "external_gateway_info", "routes"])
    gateway = {"router": {"external_gateway_info": {"network_id": external}}}
    assert net.put(f"/routers/{router}", json=gateway).status_code == 200
    assert net.put(f"/routers/{router}/add_router_interface", json={"subnet_id": subnet}).status_code == 200
    make(net, "/floatingips", "floatingip",
         {"floating_network_id": external, "port_id": port, "fixed_ip_address": "10.98.0.20", "description": "front"},
         ["port_id", "fixed_ip_address", "description"])

    make(nova, "/os-keypairs", "keypair",
         {"name": "cycle", "type": "ssh", "public_key": "ssh-ed25519 " + base64.b64encode(
             b"\0\0\0\x0bssh-ed25519\0\0\0 " + secrets.token_bytes(32)).decode()}, [])
    make(nova, "/os-server-groups", "server_group", {"name": "cycle", "policy": "anti-affinity"}, [])
    make(nova, "/servers", "server",
         {**text, "imageRef": image, "flavorRef": flavor, "metadata": {"a": "b"}, "networks": [{"port": port}]},
         ["name", "description", "accessIPv4", "accessIPv6", "OS-DCF:diskConfig"], status="active")

    volume = make(cinder, "/volumes", "volume", {**text, "size": 1, "metadata": {"a": "b"}},
                  ["name", "description", "metadata"], status="available")
    make(cinder, "/snapshots", "snapshot", {**text, "volume_id": volume, "metadata": {"a": "b"}},
         ["name", "description"], status="available")
    make(cinder, "/backups", "backup", {**text, "volume_id": volume}, ["name", "description"], status="available")

    make(ident, "/projects", "project", {**text, "domain_id": "default", "enabled": True, "tags": []},
         ["name", "description", "enabled"], method="PATCH")
    make(ident, "/users", "user", {"name": "cycle", "domain_id": "default", "enabled": True,
                                   "description": "a description", "email": "cycle@example.com"},
         ["name", "enabled", "description", "email"], method="PATCH")
    make(ident, "/groups", "group", {**text, "domain_id": "default"}, ["name", "description"], method="PATCH")
    make(ident, "/roles", "role", text, ["name", "description"], method="PATCH")
    make(admin.compute, "/os-aggregates", "aggregate", {"name": "cycle", "availability_zone": "cycle"},
         ["name", "availability_zone"])
    make(net, "/rbac-policies", "rbac_policy",
         {"object_type": "network", "object_id": network, "action": "access_as_shared",
          "target_tenant": admin.current_project_id}, ["target_tenant"])
    make(admin.compute, "/flavors", "flavor",
         {"name": "cycle", "ram": 64, "vcpus": 1, "disk": 1, "OS-FLV-EXT-DATA:ephemeral": 0,
          "os-flavor-access:is_public": True}, [])
    make(admin.block_storage, "/types", "volume_type", {**text, "extra_specs": {"a": "b"}}, ["name", "description"])
    make(admin.block_storage, "/qos-specs", "qos_specs", {"name": "cycle", "consumer": "front-end"}, [])
    image_cycle(glance)
    secret_cycle(keys)

    for cycle in made:
        cycle.write()
        print("cycle", cycle.path, flush=True)
    # Ports and subnets that a router or a server uses are let go first.
    for path in ("/servers", "/floatingips"):
        for cycle in [c for c in made if c.path == path]:
            cycle.delete()
            made.remove(cycle)
    assert net.put(f"/routers/{router}/remove_router_interface", json={"subnet_id": subnet}).status_code == 200
    for cycle in reversed(made):
        if cycle.path == "/ports" and net.get(cycle.at).status_code == 404:
            continue
        cycle.delete()


def image_cycle(glance):
    """Images are changed by JSON patches."""
    fields = {"name": "cycle", "disk_format": "raw", "container_format": "bare", "min_disk": 1, "min_ram": 64,
              "visibility": "private", "protected": False, "os_distro": "debian", "tags": ["a"]}
    answer = glance.post("/images", json=fields)
    assert answer.status_code == 201, answer.text
    at = f"/images/{answer.json()['id']}"
    before = show(glance, at, None)
    for name, value in fields.items():
        assert before[name] == value, (name, value, before)
    patch = [{"op": "replace", "path": f"/{n}", "value": before[n]} for n in fields]
    kind = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
    answer = glance.patch(at, json=patch, headers=kind)
    assert answer.status_code == 200, answer.text
    after = show(glance, at, None)
    assert {k: v for k, v in before.items() if k not in TIMES} == {k: v for k, v in after.items() if k not in TIMES}
    assert glance.delete(at).status_code == 204
    print("cycle /images", flush=True)


def secret_cycle(keys):
    """Secrets are made and read, not changed; their metadata is."""
    answer = keys.post("/secrets", json={"name": "cycle", "payload": "s3cret", "payload_content_type": "text/plain"})
    assert answer.status_code == 201, answer.text
    at = "/secrets/" + answer.json()["secret_ref"].rsplit("/", 1)[-1]
    payload = keys.get(f"{at}/payload", headers={"Accept": "text/plain"})
    assert payload.text == "s3cret", payload.text
    for _ in range(2):
        assert keys.put(f"{at}/metadata", json={"metadata": {"a": "b"}}).status_code == 201
        assert show(keys, f"{at}/metadata", "metadata") == {"a": "b"}
    assert keys.delete(at).status_code == 204
    print("cycle /secrets", flush=True)


server_in_one_call()
cycles()
