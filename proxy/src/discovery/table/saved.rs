//! The last good resources as bytes, for the state directory: one response of the discovery protocol
//! for each type, so that what comes back passes through the same checks as what the control plane
//! sends.

use heddle_api::proto::{ads, type_url};
use prost::Message;
use tokio::time::Instant;

use super::{
    Dial, Origin, Table,
    kind::{Answer, Kind},
};
use crate::config::DialName;

/// First bytes of the file; the digit is its version.
const MAGIC: &[u8] = b"heddle-resources-1\n";

impl Table {
    /// Everything held, and the names that are no service.
    pub(in crate::discovery) fn saved(&self) -> Vec<u8> {
        let mut services = response(&self.services);
        for resource in &mut services.resources {
            let leads_here =
                |answer: &Option<Dial>| matches!(answer, Some(Dial::Service(name)) if *name == resource.name);
            let aliases = self.dialled.iter().filter(|(_, dialled)| leads_here(&dialled.answer));
            resource.aliases = aliases.map(|(alias, _)| alias.clone()).collect();
        }
        let unknown = self.dialled.iter().filter(|(_, dialled)| dialled.answer == Some(Dial::Unknown));
        services.removed_resources = unknown.map(|(name, _)| name.clone()).collect();
        let mut workloads = response(&self.workloads);
        // Without a platform that knows it, it only calls: then nothing is to be waited for at the next start.
        if self.workloads.answer(&self.own.node) == Some(Answer::Missing) {
            workloads.removed_resources.push(self.own.node.clone());
        }
        let responses = [
            response(&self.bundles),
            response(&self.meshes),
            workloads,
            response(&self.inbound),
            services,
            response(&self.endpoints),
        ];
        let mut bytes = MAGIC.to_vec();
        for response in responses {
            bytes.extend(response.encode_length_delimited_to_vec());
        }
        bytes
    }

    /// Takes what [`Table::saved`] made. What cannot be used is left out; an error says that nothing
    /// can be read from some point on.
    pub(crate) fn restore(&mut self, bytes: &[u8], now: Instant) -> Result<(), String> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or("it is no file of resources of this version")?;
        while !rest.is_empty() {
            let response =
                ads::DeltaDiscoveryResponse::decode_length_delimited(&mut rest).map_err(|e| e.to_string())?;
            match response.type_url.as_str() {
                type_url::SERVICE => {
                    let aliases = response.resources.iter().flat_map(|resource| &resource.aliases);
                    for alias in aliases.chain(&response.removed_resources) {
                        if alias.parse::<DialName>().is_ok_and(|name| name.to_string() == *alias) {
                            let _ = self.dial(alias, false, now);
                        }
                    }
                    for resource in &response.resources {
                        self.services.want(resource.name.clone(), now);
                    }
                }
                type_url::ENDPOINTS => {
                    for resource in &response.resources {
                        self.endpoints.want(resource.name.clone(), now);
                    }
                }
                _ => {}
            }
            let answer = self.apply_from(Origin::StateDirectory, response, now);
            if let Some(refused) = answer.error_detail {
                tracing::warn!(reason = refused.message, "a saved resource cannot be used");
            }
        }
        Ok(())
    }
}

fn response<T>(kind: &Kind<T>) -> ads::DeltaDiscoveryResponse {
    ads::DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        resources: kind.sent().collect(),
        ..ads::DeltaDiscoveryResponse::default()
    }
}
