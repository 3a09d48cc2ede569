//! RSL 1.0: the signed terms as a licence file that crawlers read.
//!
//! The usage tokens of a licence are RSL's own. Payment is of type `use` (each time the content contributes to an output of an
//! AI system) where the dataset has payees; amounts are settled by influence, so no rate stands there. RSL has no element for
//! who is paid in which share: that stays in the licence whose digest is named under `legal`.

use std::fmt::Write as _;

use super::xml_escape;
use crate::registry::Dataset;

/// The namespace of RSL 1.0.
const RSL_NAMESPACE: &str = "https://rslstandard.org/rsl";

/// The RSL file of a dataset.
pub fn export(dataset: &Dataset) -> String {
    let (manifest, message) = (&dataset.manifest, dataset.licence.message());
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let mut line = |depth: usize, text: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(xml, "{:indent$}{text}", "", indent = 2 * depth);
    };
    line(0, format!("<rsl xmlns=\"{RSL_NAMESPACE}\">"));
    line(1, format!("<content url=\"{}\">", xml_escape(&manifest.uuid)));
    line(2, "<license>".to_owned());
    if !message.permits.is_empty() {
        line(3, format!("<permits type=\"usage\">{}</permits>", xml_escape(&message.permits.join(" "))));
    }
    if !message.prohibits.is_empty() {
        line(3, format!("<prohibits type=\"usage\">{}</prohibits>", xml_escape(&message.prohibits.join(" "))));
    }
    line(3, "<payment type=\"use\"/>".to_owned());
    let digest = dataset.licence.digest();
    line(3, format!("<legal type=\"attestation\">{}</legal>", xml_escape(&format!("urn:ascribe:licence:{digest}"))));
    line(2, "</license>".to_owned());
    line(2, format!("<copyright type=\"organization\">{}</copyright>", xml_escape(&manifest.owner)));
    line(2, format!("<terms>{}</terms>", xml_escape(&super::licence_page(&manifest.licence))));
    line(1, "</content>".to_owned());
    line(0, "</rsl>".to_owned());
    xml
}
