//! JSON in the form that the controller reads.

use serde_json::Value;

/// JSON with everything outside ASCII escaped, as the controller expects it of callbacks and reports.
pub fn ascii_json(value: &Value) -> String {
    let text = value.to_string();
    if text.is_ascii() {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c.is_ascii() {
            escaped.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_controller_reads_is_ascii() {
        let json = ascii_json(&serde_json::json!({"error": "Größe 磁 😀"}));
        assert_eq!(json, r#"{"error":"Gr\u00f6\u00dfe \u78c1 \ud83d\ude00"}"#);
    }
}
