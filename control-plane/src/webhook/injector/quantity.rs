//! Amounts of processor and memory in Kubernetes' notation.

/// A sidecar needs more than this; less is nearly always a slip of the unit (`64m` is 0.064 bytes).
const LEAST_MEMORY: f64 = 16.0 * 1024.0 * 1024.0;

/// An amount of processors, such as `10m` or `0.5`.
pub(super) fn cpu(text: &str) -> Result<f64, String> {
    let fault = || "is not an amount of processors; write for example 10m or 0.5".to_owned();
    let amount = parse(text, &[("m", 1e-3), ("", 1.0), ("k", 1e3)]).ok_or_else(fault)?;
    if amount > 0.0 { Ok(amount) } else { Err("is no processor at all; write for example 10m".to_owned()) }
}

/// An amount of memory in bytes, such as `24Mi`.
pub(super) fn memory(text: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 14] = [
        ("m", 1e-3),
        ("", 1.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
    ];
    let fault = || "is not an amount of memory; write for example 64Mi".to_owned();
    let amount = parse(text, &UNITS).ok_or_else(fault)?;
    if amount >= LEAST_MEMORY {
        Ok(amount)
    } else {
        Err("is less than the 16Mi that a sidecar needs; write for example 64Mi".to_owned())
    }
}

fn parse(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = units.iter().find(|(known, _)| *known == unit)?.1;
    let whole = number.bytes().filter(u8::is_ascii_digit).count();
    let plain = (1..=18).contains(&whole) && number.bytes().filter(|b| *b == b'.').count() <= 1;
    plain.then(|| number.parse::<f64>().ok()).flatten().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for (text, amount) in [("10m", 0.01), ("0.5", 0.5), ("2", 2.0), ("1k", 1000.0)] {
            assert_eq!(cpu(text), Ok(amount), "{text}");
        }
        for (text, amount) in
            [("24Mi", 25_165_824.0), ("128M", 128e6), ("1Gi", 1_073_741_824.0), ("33554432", 33_554_432.0)]
        {
            assert_eq!(memory(text), Ok(amount), "{text}");
        }
        for text in ["", "m", "-1", "+1", "1e3", "1 m", "1.2.3", ".", "1Mi", "10M", "NaN", "9999999999999999999"] {
            assert!(cpu(text).is_err(), "{text}");
        }
        for text in ["", "64m", "64", "64mi", "64MB", "-64Mi", "1Zi"] {
            assert!(memory(text).expect_err(text).contains("64Mi"), "{text}");
        }
    }
}
