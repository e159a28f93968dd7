"""From records to batches: sources, prompt templates, tokenization, and the data module that combines them."""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.data.batching import Batch as Batch
    from typst_lit.data.batching import Collator as Collator
    from typst_lit.data.batching import LengthGroupedSampler as LengthGroupedSampler
    from typst_lit.data.batching import PackedSampler as PackedSampler
    from typst_lit.data.batching import PackedSequences as PackedSequences
    from typst_lit.data.batching import PackingCollator as PackingCollator
    from typst_lit.data.datamodule import TypstDataModule as TypstDataModule
    from typst_lit.data.encoding import Encoder as Encoder
    from typst_lit.data.encoding import Example as Example
    from typst_lit.data.lengths import LengthReport as LengthReport
    from typst_lit.data.prompts import FormatPrompt as FormatPrompt
    from typst_lit.data.prompts import PromptTemplate as PromptTemplate
    from typst_lit.data.prompts import ReportPrompt as ReportPrompt
    from typst_lit.data.records import Field as Field
    from typst_lit.data.records import ParsedRecord as ParsedRecord
    from typst_lit.data.records import parse_record as parse_record
    from typst_lit.data.sources import FileSource as FileSource
    from typst_lit.data.sources import HubSource as HubSource
    from typst_lit.data.sources import RecordSource as RecordSource
    from typst_lit.data.sources import Row as Row
    from typst_lit.data.sources import open_source as open_source
    from typst_lit.data.table import load_records as load_records

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Batch": "typst_lit.data.batching",
        "Collator": "typst_lit.data.batching",
        "Encoder": "typst_lit.data.encoding",
        "Example": "typst_lit.data.encoding",
        "Field": "typst_lit.data.records",
        "FileSource": "typst_lit.data.sources",
        "FormatPrompt": "typst_lit.data.prompts",
        "HubSource": "typst_lit.data.sources",
        "LengthGroupedSampler": "typst_lit.data.batching",
        "LengthReport": "typst_lit.data.lengths",
        "PackedSampler": "typst_lit.data.batching",
        "PackedSequences": "typst_lit.data.batching",
        "PackingCollator": "typst_lit.data.batching",
        "ParsedRecord": "typst_lit.data.records",
        "PromptTemplate": "typst_lit.data.prompts",
        "RecordSource": "typst_lit.data.sources",
        "ReportPrompt": "typst_lit.data.prompts",
        "Row": "typst_lit.data.sources",
        "TypstDataModule": "typst_lit.data.datamodule",
        "load_records": "typst_lit.data.table",
        "open_source": "typst_lit.data.sources",
        "parse_record": "typst_lit.data.records",
    },
)
