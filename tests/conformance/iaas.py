"""The checks of SCS-compatible IaaS v5.1 that need nothing but its API, as a plain member of a project.

Prints one JSON object a check: id, status ("success" or "fail"), reason.
Usage: iaas.py CLOUD ID...
"""

import datetime
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import openstack

GIB = 2**30
# SCS-0103: name, vCPUs, RAM in MiB, disk in GiB, kind of cores, kind of disk.
FLAVORS = {
    "1v-4": (1, 4096, 0), "2v-8": (2, 8192, 0), "4v-16": (4, 16384, 0), "4v-16-100s": (4, 16384, 100),
    "8v-32": (8, 32768, 0), "1v-2": (1, 2048, 0), "2v-4": (2, 4096, 0), "2v-4-20s": (2, 4096, 20),
    "4v-8": (4, 8192, 0), "8v-16": (8, 16384, 0), "16v-32": (16, 32768, 0), "1v-8": (1, 8192, 0),
    "2v-16": (2, 16384, 0), "4v-32": (4, 32768, 0), "1l-1": (1, 1024, 0),
}
# SCS-0104: where an image of this name may come from.
SOURCES = {
    "ubuntu-2404": ("Ubuntu 24.04", "https://cloud-images.ubuntu.com/", "noble/"),
    "ubuntu-2204": ("Ubuntu 22.04", "https://cloud-images.ubuntu.com/", "jammy/"),
    "ubuntu-2004": ("Ubuntu 20.04", "https://cloud-images.ubuntu.com/", "focal/"),
    "debian-13": ("Debian 13", "https://cloud.debian.org/images/cloud/", "trixie/"),
    "debian-12": ("Debian 12", "https://cloud.debian.org/images/cloud/", "bookworm/"),
    "debian-11": ("Debian 11", "https://cloud.debian.org/images/cloud/", "bullseye/"),
}
PERIODS = {"yearly": 365, "quarterly": 92, "monthly": 31, "weekly": 7, "daily": 1}
NAME = re.compile(
    r"^SCS-(?P<cpus>\d+)(?P<kind>[LVTC])(?P<insecure>i?)-(?P<ram>\d+(\.5)?)(u?)(o?)"
    r"(-((?P<disks>\d+)x)?(?P<disk>\d+)?(?P<disk_kind>[nhsp])?)?"
    r"(_(kvm|chy|xen|vmw|hyv|bms))?(_hwv)?(_[iazr]\d*h{0,3})?(_[gG][NAI][\w.:+-]*)?(_ib)?$"
)


class Failed(Exception):
    """A requirement that is not met."""


def need(condition, what):
    if not condition:
        raise Failed(what)


def day(text):
    """A build date in one of the forms that SCS-0102 allows."""
    for form in ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d"):
        try:
            return datetime.datetime.strptime(text, form)
        except (TypeError, ValueError):
            continue
    return None


class Checks:
    def __init__(self, cloud):
        self.conn = openstack.connect(cloud=cloud, timeout=32)
        roles = set(self.conn.session.auth.get_access(self.conn.session).role_names)
        need("member" in roles, "the user is no member")
        need(not roles & {"admin", "manager"}, f"the user has too many rights: {sorted(roles)}")
        self.flavors = list(self.conn.list_flavors(get_extra=True))
        self.images = [i for i in self.conn.image.images() if i.visibility in ("public", "community")]
        need(self.images, "there is no public image")
        self.types = {entry["type"] for entry in self.conn.service_catalog}

    def run(self, check):
        number, rest = check.removeprefix("scs-").split("-", 1)
        for prefix, function in (
            ("0102-prop-", self.image_property), ("0103-flavor-", self.flavor), ("0104-source-", self.image_source),
            ("0104-image-", self.image_presence), ("0123-service-", self.service),
        ):
            if check.startswith(f"scs-{prefix}"):
                return function(check.removeprefix(f"scs-{prefix}"))
        return getattr(self, f"scs_{number}_{rest.replace('-', '_')}")()

    # SCS-0100: names of flavors.
    def named(self):
        found = [(f, NAME.match(f.name)) for f in self.flavors if f.name.startswith("SCS-")]
        need(found, "no flavor has an SCS name")
        return found

    def scs_0100_syntax_check(self):
        wrong = [f.name for f, parts in self.named() if not parts]
        need(not wrong, f"names out of the grammar: {wrong}")

    def scs_0100_semantics_check(self):
        for flavor, parts in self.named():
            if not parts:
                continue
            need(flavor.vcpus >= int(parts["cpus"]), f"{flavor.name} has {flavor.vcpus} vCPUs")
            need(flavor.ram >= float(parts["ram"]) * 1024 * 0.95, f"{flavor.name} has {flavor.ram} MiB")
            disk = int(parts["disk"] or 0) * int(parts["disks"] or 1)
            need(flavor.disk >= disk, f"{flavor.name} has a disk of {flavor.disk} GiB")

    # SCS-0102: properties of images.
    def image_property(self, name):
        for image in self.images:
            value = image.properties.get(name) if name not in ("min_disk", "min_ram") else getattr(image, name)
            if value is None:
                value = getattr(image, name, None)
            need(self.is_right(name, value, image), f"{image.name}: {name} is {value!r}")

    @staticmethod
    def is_right(name, value, image):
        if name == "architecture":
            return value in ("x86_64", "aarch64", "risc-v")
        if name == "min_disk":
            return bool(value) and value * GIB >= image.size
        if name == "min_ram":
            return bool(value)
        if name == "hw_disk_bus":
            return value in ("virtio", "scsi", None)
        if name == "image_build_date":
            built, made = day(value), day(image.created_at)
            return bool(built) and built <= made and built <= datetime.datetime.utcnow()
        if name == "image_source":
            return value == "private" or str(value).split("://")[0] in ("http", "https", "ftp", "ftps")
        if name == "replace_frequency":
            return value in PERIODS or value in ("never", "critical_bug")
        if name == "provided_until":
            return value in ("none", "notice") or bool(day(value))
        if name == "uuid_validity":
            ok = (None, "none", "notice", "forever")
            return value in ok or bool(re.fullmatch(r"last-\d+", value)) or bool(day(value))
        return bool(value)

    def scs_0102_image_recency(self):
        for image in self.images:
            period = PERIODS.get(image.properties.get("replace_frequency"))
            until = image.properties.get("provided_until")
            if period is None or until in ("none", "notice"):
                continue
            old = datetime.datetime.utcnow() - day(image.properties["image_build_date"])
            ended = day(until) and day(until) < datetime.datetime.utcnow()
            need(old.days <= 1.1 * period or ended or image.is_hidden, f"{image.name} is {old.days} days old")

    # SCS-0103: flavors that every cloud has.
    def flavor(self, short):
        name = "SCS-" + short.replace("v", "V", 1).replace("l", "L", 1)
        cpus, ram, disk = FLAVORS[short]
        found = [f for f in self.flavors if f.extra_specs.get("scs:name-v2", f.name) == name]
        need(len(found) == 1, f"{len(found)} flavors are {name}")
        flavor = found[0]
        need((flavor.vcpus, flavor.ram, flavor.disk) == (cpus, ram, disk), f"{name} is {flavor}")
        first, *others = name.split("-")
        wanted = {"scs:name-v2": name, "scs:name-v1": first + "-" + ":".join(others)}
        wanted["scs:cpu-type"] = "crowded-core" if "L" in others[0] else "shared-core"
        if disk:
            wanted["scs:disk0-type"] = "ssd"
        specs = {k: v for k, v in flavor.extra_specs.items() if k.startswith("scs:")}
        need(specs == wanted, f"{name} has {specs}, not {wanted}")

    # SCS-0104: images that every cloud has, and where they come from.
    def image_source(self, short):
        for image in self.images:
            source = str(image.properties.get("image_source"))
            if short.startswith("capi"):
                if re.match(r"ubuntu-capi-image-v[0-9]", image.name):
                    need(source.startswith("https://"), f"{image.name} comes from {source}")
            elif image.name == SOURCES[short][0]:
                _, start, within = SOURCES[short]
                need(source.startswith(start) and within in source, f"{image.name} comes from {source}")

    def image_presence(self, short):
        name = SOURCES[short][0]
        need(any(i.name == name for i in self.images), f"there is no image {name}")

    # SCS-0114: what descriptions of volume types promise.
    def scs_0114_syntax_check(self):
        types = list(self.conn.block_storage.types())
        need(types, "there is no volume type")
        for kind in types:
            found = re.match(r"\[scs:([^\]]*)\]", kind.description or "")
            if found:
                aspects = [a.strip() for a in found[1].split(",")]
                right = sorted(set(aspects)) == aspects and set(aspects) <= {"encrypted", "replicated"}
                need(right, f"{kind.name} promises {aspects}")

    # SCS-0115: what a new security group allows.
    def scs_0115_default_rules(self):
        allowed = set()
        for rule in self.conn.network.default_security_group_rules():
            if rule.direction == "ingress":
                own = rule.remote_group_id == "PARENT" and not rule["used_in_non_default_sg"]
                need(own, f"a default rule lets strangers in: {rule}")
            elif not rule.remote_ip_prefix:
                for group in ("used_in_default_sg", "used_in_non_default_sg"):
                    if rule[group]:
                        allowed.add((rule.ether_type, group))
        need(len(allowed) == 4, f"egress is allowed only for {sorted(allowed)}")

    # SCS-0116: a member keeps secrets.
    def scs_0116_permissions(self):
        need("key-manager" in self.types, "there is no key manager")
        keys = self.conn.key_manager
        keys.create_secret(name="check", payload_content_type="text/plain", secret_type="opaque", payload="foo")
        found = [s for s in keys.secrets() if s.name == "check"]
        need(len(found) == 1, f"{len(found)} secrets are listed")
        secret = found[0].id.rsplit("/", 1)[-1]
        keys.delete_secret(secret)
        need(not [s for s in keys.secrets() if s.name == "check"], "a deleted secret is listed")

    # SCS-0117: volumes are backed up and restored.
    def scs_0117_test_backup(self):
        disks = self.conn.block_storage

        def wait(get, what):
            for _ in range(110):
                thing = get()
                if thing is not None and thing.status == "available":
                    return thing
                need(thing is None or "error" not in thing.status, f"{what}: {thing}")
                time.sleep(1)
            raise Failed(f"{what} is not available after 110 s: {thing}")

        volume = disks.create_volume(name="check", size=1)
        wait(lambda: disks.get_volume(volume.id), "the volume")
        backup = disks.create_backup(name="check", volume_id=volume.id)
        wait(lambda: disks.get_backup(backup.id), "the backup")
        disks.restore_backup(backup.id, name="check-restored")
        restored = wait(lambda: disks.find_volume("check-restored"), "the restored volume")
        disks.delete_backup(backup.id)
        disks.delete_volume(volume.id)
        disks.delete_volume(restored.id)
        for _ in range(110):
            left = [x for x in [*disks.backups(), *disks.volumes()] if (x.name or "").startswith("check")]
            if not left:
                return
            time.sleep(1)
        raise Failed(f"not deleted after 110 s: {left}")

    # SCS-0123: services that every cloud has.
    def service(self, name):
        need(name in self.types, f"the catalog has no {name}")

    def scs_0123_storage_apis(self):
        need(self.types & {"volume", "volumev3", "block-storage"}, "the catalog has no block storage")

    def scs_0123_swift_s3(self):
        if "object-store" not in self.types:
            return
        parts = urllib.parse.urlsplit(self.conn.object_store.get_endpoint())
        request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}/")
        request.add_header("Authorization", "AWS unknown:signature")
        try:
            urllib.request.urlopen(request, timeout=32)
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            need("InvalidAccessKeyId" in text or "NoSuchKey" in text, f"not an answer of S3: {text[:200]}")
            return
        raise Failed("a stranger may list buckets")


def main():
    cloud, *ids = sys.argv[1:]
    checks = Checks(cloud)
    for check in ids:
        try:
            checks.run(check)
            result = {"id": check, "status": "success", "reason": ""}
        except Exception as error:  # whatever goes wrong is the check's failure
            result = {"id": check, "status": "fail", "reason": f"{type(error).__name__}: {error}"[:400]}
        print(json.dumps(result), flush=True)


main()
