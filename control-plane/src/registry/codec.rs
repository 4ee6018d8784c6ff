//! Where things lie in the store, and in what form.

use std::sync::Arc;

use heddle_api::resource::{AnyObject, Name, ObjectKind};

use super::{Registration, RegistryError};
use crate::store::{Event, KeyValue};

/// Objects of all kinds: `/objects/<kind>/<namespace>/<name>`.
pub(super) const OBJECTS: &str = "/objects/";
/// Workloads registered by their proxies: `/registered/<namespace>/<name>`.
pub(super) const REGISTERED: &str = "/registered/";
/// Number of the newest user-visible revision; every transaction over objects compares and writes it.
pub(super) const HEAD: &str = "/revisions/head";

/// What a key is about.
pub(super) enum Subject {
    Object(ObjectKind, Name),
    Registration(Name),
    Head,
    Other,
}

impl Subject {
    pub(super) fn of(key: &str) -> Self {
        let name = |rest: &str| rest.split_once('/').map(|(namespace, name)| Name::new(namespace, name));
        if let Some(rest) = key.strip_prefix(OBJECTS) {
            let parsed =
                rest.split_once('/').and_then(|(kind, rest)| Some((ObjectKind::from_kind(kind)?, name(rest)?)));
            return parsed.map_or(Self::Other, |(kind, name)| Self::Object(kind, name));
        }
        if let Some(rest) = key.strip_prefix(REGISTERED) {
            return name(rest).map_or(Self::Other, Self::Registration);
        }
        if key == HEAD { Self::Head } else { Self::Other }
    }
}

pub(super) fn object_key(kind: ObjectKind, name: &Name) -> Arc<str> {
    format!("{OBJECTS}{}/{}/{}", kind.as_str(), name.namespace, name.name).into()
}

pub(super) fn registration_key(name: &Name) -> Arc<str> {
    format!("{REGISTERED}{}/{}", name.namespace, name.name).into()
}

/// An object as it is stored: without what the store itself knows, and without status.
pub(super) fn encode_object(object: &AnyObject) -> Vec<u8> {
    let mut object = object.clone();
    object.metadata_mut().resource_version = None;
    object.set_status(None);
    serde_json::to_vec(&object).expect("an object is JSON: its maps have text keys")
}

pub(super) fn decode_object(kind: ObjectKind, entry: &KeyValue) -> Result<AnyObject, RegistryError> {
    let mut object = AnyObject::from_slice(kind, &entry.value).map_err(|error| unreadable(entry, &error))?;
    object.metadata_mut().resource_version = Some(entry.mod_revision.to_string());
    Ok(object)
}

pub(super) fn decode_registration(name: &Name, entry: &KeyValue) -> Result<Registration, RegistryError> {
    let mut registration: Registration =
        serde_json::from_slice(&entry.value).map_err(|error| unreadable(entry, &error))?;
    registration.name = name.clone();
    registration.revision = entry.mod_revision;
    Ok(registration)
}

pub(super) fn decode_number(entry: &KeyValue) -> Result<u64, RegistryError> {
    serde_json::from_slice(&entry.value).map_err(|error| unreadable(entry, &error))
}

fn unreadable(entry: &KeyValue, error: &serde_json::Error) -> RegistryError {
    RegistryError::Unreadable { key: Arc::clone(&entry.key), reason: error.to_string() }
}

/// A change as it lies in the store, read without a view.
#[derive(Clone, Debug)]
pub struct StoredChange {
    /// Its kind; registered workloads are workloads.
    pub kind: ObjectKind,
    /// Before; absent: it was made.
    pub before: Option<AnyObject>,
    /// After; absent: it was removed.
    pub after: Option<AnyObject>,
    /// Whether it is a workload that its proxy registered.
    pub registered: bool,
}

impl StoredChange {
    /// What an event of the store says about an object; nothing if it is about something else.
    pub fn read(event: &Event) -> Result<Option<Self>, RegistryError> {
        Ok(match Subject::of(&event.key) {
            Subject::Object(kind, _) => {
                let decode =
                    |entry: &Option<KeyValue>| entry.as_ref().map(|entry| decode_object(kind, entry)).transpose();
                Some(Self { kind, before: decode(&event.before)?, after: decode(&event.after)?, registered: false })
            }
            Subject::Registration(name) => {
                let decode = |entry: &Option<KeyValue>| -> Result<Option<AnyObject>, RegistryError> {
                    let registration = entry.as_ref().map(|entry| decode_registration(&name, entry)).transpose()?;
                    Ok(registration.map(|registration| registration.to_workload().into()))
                };
                let (before, after) = (decode(&event.before)?, decode(&event.after)?);
                Some(Self { kind: ObjectKind::Workload, before, after, registered: true })
            }
            Subject::Head | Subject::Other => None,
        })
    }
}
