//! `heddle inject` and `heddle uninject`: Kubernetes manifests get proxies and lose them again. What is not changed
//! comes out byte for byte, and so does a manifest that was injected and uninjected.

mod edit;
mod render;
#[cfg(test)]
mod tests;
mod tree;

use std::path::PathBuf;

use heddle_kubernetes::{
    inject::{self as injection, InjectError, Injector, Outcome, Pod},
    names::{self, ORIGINAL},
    patch::Change,
    pod_security,
    settings::Inject,
};
use serde_json::Value;

use self::edit::Originals;
use crate::{
    args::{Global, InjectArgs, ManifestFiles},
    context::read_text,
    error::{Error, exit},
    manifest::{self, ManifestFault},
    output::{self, Paint},
};

/// Gives the pods of manifests a proxy.
pub(crate) fn inject(global: &Global, args: &InjectArgs) -> Result<u8, Error> {
    let trust_roots = match &args.roots {
        Some(file) => read_text(file)?,
        None => global.overrides().resolve()?.ca_pem,
    };
    if !trust_roots.contains("-----BEGIN CERTIFICATE-----") {
        return Err(Error::Usage("--roots: there is no certificate in it; it is a file of PEM".to_owned()));
    }
    let goes_along = || (args.image == names::PROXY_IMAGE).then(|| names::CAPTURE_IMAGE.to_owned());
    let injector = Injector {
        image: args.image.clone(),
        capture_image: args.capture_image.clone().or_else(goes_along),
        image_pull_policy: args.image_pull_policy.clone(),
        control_plane: args.control_plane.clone(),
        trust_domain: args.trust_domain.clone(),
        trust_roots,
        tracing_endpoint: args.tracing_endpoint.clone(),
        hook_key: format!("{:032x}", rand::random::<u128>()),
    };
    let work = Work { way: Way::In, what: &|object| injector.inject(object, Some(Inject::Enabled)) };
    work.files(global, &args.files)
}

/// Takes the proxies off.
pub(crate) fn uninject(global: &Global, files: &ManifestFiles) -> Result<u8, Error> {
    Work { way: Way::Out, what: &injection::uninject }.files(global, files)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// What is done with each object.
struct Work<'a> {
    way: Way,
    what: &'a dyn Fn(&Value) -> Result<Vec<Pod>, InjectError>,
}

/// What came of a text.
#[derive(Debug, Default)]
struct Done {
    text: String,
    /// A line for each pod.
    told: Vec<String>,
    faults: Vec<ManifestFault>,
    /// Namespaces that refuse what capture needs, with why.
    strict: Vec<(String, String)>,
    /// Namespaces of what was injected; `None`: where it will be applied.
    injected: Vec<Option<String>>,
}

impl Work<'_> {
    /// All or nothing is printed; what was done, on standard error.
    fn files(&self, global: &Global, files: &ManifestFiles) -> Result<u8, Error> {
        let mut paths = [files.paths.as_slice(), files.files.as_slice()].concat();
        if paths.is_empty() {
            paths.push(PathBuf::from("-"));
        }
        let texts = manifest::texts(&paths)?;
        let mut all = Done::default();
        for (name, text, _) in &texts {
            let done = self.text(name, text);
            if !all.text.is_empty() {
                all.text.push_str(if all.text.ends_with('\n') { "---\n" } else { "\n---\n" });
            }
            all.text.push_str(&done.text);
            all.told.extend(done.told);
            all.faults.extend(done.faults);
            all.strict.extend(done.strict);
            all.injected.extend(done.injected);
        }
        if !all.faults.is_empty() {
            return Err(Error::Manifest(all.faults));
        }
        let paint = Paint::for_stderr(global.color);
        for line in all.told {
            output::complain(&format!("{line}\n"));
        }
        for (namespace, why) in all.strict {
            if all.injected.iter().any(|used| used.as_deref() == Some(&namespace)) {
                output::complain(&format!("{} {why}\n", paint.bad("warning:")));
            }
        }
        output::print(&all.text)?;
        Ok(exit::OK)
    }

    /// Every document of a text.
    fn text(&self, name: &str, text: &str) -> Done {
        let mut done = Done::default();
        let documents = match tree::documents(text) {
            Ok(documents) => documents,
            Err(message) => {
                done.faults.push(ManifestFault::new(name.to_owned(), format!("it is no YAML or JSON: {message}")));
                return done;
            }
        };
        if documents.is_empty() {
            done.text = text.to_owned();
        }
        let single = documents.len() <= 1;
        for (index, range) in documents.into_iter().enumerate() {
            let place = if single { name.to_owned() } else { format!("{name}, document {}", index + 1) };
            match self.document(&text[range], &mut done) {
                Ok(text) => done.text.push_str(&text),
                Err(message) => done.faults.push(ManifestFault::new(place, message)),
            }
        }
        done
    }

    fn document(&self, text: &str, done: &mut Done) -> Result<String, String> {
        let Some(root) = tree::parse(text)? else { return Ok(text.to_owned()) };
        let object = root.value()?;
        done.strict.extend(pod_security::namespace(&object));
        let pods = (self.what)(&object).map_err(|error| error.to_string())?;
        let mut text = text.to_owned();
        for Pod { at, name, outcome } in pods {
            let changes = match outcome {
                Outcome::Left(reason) => {
                    done.told.push(format!("{name}: left as it is, {reason}"));
                    continue;
                }
                Outcome::Changed(changes) => changes,
            };
            let annotations = at.key("metadata").key("annotations");
            let originals = match self.way {
                Way::In => Originals::new(),
                Way::Out => annotations
                    .key(ORIGINAL)
                    .find(&object)
                    .and_then(Value::as_str)
                    .and_then(|text| serde_json::from_str(text).ok())
                    .unwrap_or_default(),
            };
            let mut replaced = Originals::new();
            for change in &changes {
                text = edit::apply(&text, change, &originals, &mut replaced)?;
            }
            if self.way == Way::In && !replaced.is_empty() {
                let value = serde_json::to_string(&replaced).unwrap_or_default().into();
                let keep = Change::AddEntry { at: annotations, key: ORIGINAL.to_owned(), value };
                text = edit::apply(&text, &keep, &originals, &mut Originals::new())?;
            }
            done.told.push(format!("{name}: {}", if self.way == Way::In { "injected" } else { "uninjected" }));
            done.injected.push(object["metadata"]["namespace"].as_str().map(str::to_owned));
        }
        Ok(text)
    }
}
