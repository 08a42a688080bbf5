// SPDX-License-Identifier: GPL-2.0

//! Who plays: the services, and the clients that call them.

/// A service and the load it gets.
pub struct Role {
    pub name: &'static str,
    /// For the reader of the table.
    pub what: &'static str,
    /// Threads that call it at once with small payloads.
    pub callers: usize,
    /// Oneway calls of 64 KiB that wait in its buffer while a call of 512 KiB comes in:
    /// decides how many pages the service has touched in the end. With six, the oneway
    /// half of the mapping is nearly full, short of what counts as spam.
    pub burst: usize,
    /// Lives in a cgroup below [`PARENT`], which is removed in the last act.
    pub nested: bool,
}

pub const SERVICES: [Role; 5] = [
    Role {
        name: "camera",
        what: "frames",
        callers: 4,
        burst: 6,
        nested: false,
    },
    Role {
        name: "audio",
        what: "sound buffers",
        callers: 3,
        burst: 5,
        nested: false,
    },
    Role {
        name: "sensors",
        what: "batches of events",
        callers: 2,
        burst: 3,
        nested: false,
    },
    Role {
        name: "location",
        what: "fixes, map tiles",
        callers: 2,
        burst: 1,
        nested: false,
    },
    Role {
        name: "notes",
        what: "an app's provider",
        callers: 2,
        burst: 4,
        nested: true,
    },
];

/// Clients and the services they call. No service has two clients, so that no
/// two large payloads meet in one mapping.
pub const CLIENTS: [(&str, &[&str]); 2] = [
    ("recorder", &["camera", "audio"]),
    ("tracker", &["sensors", "location", "notes"]),
];

/// The cgroup around the nested service's.
pub const PARENT: &str = "apps";

/// The service whose cgroup is squeezed.
pub const SQUEEZED: &str = "camera";

/// The service whose cgroup is removed.
pub const REMOVED: &str = "notes";

pub fn role(name: &str) -> Option<&'static Role> {
    SERVICES.iter().find(|role| role.name == name)
}

/// The name under which the service manager knows a service.
pub fn instance(name: &str) -> String {
    format!("lab.demo.IPayloadService/{name}")
}
