"""Responses that a number task must accept in lenient mode, and must not, by reference."""

# fmt: off
# {reference: (right responses, wrong responses)}
RESPONSES: dict[str, tuple[list[str], list[str]]] = {
    "18": (
        [r"The final answer is $\boxed{18}$.", r"#### \boxed{18}", "The answer is 18 dollars.",
         r"\boxed{18 \text{ eggs}}", "<answer>18</answer>", "<answer> 18 dollars </answer>",
         "<think>maybe 17. The answer is 17.</think>\nThe answer is 18.",
         "The answer is 18 dollars every day at the farmers' market.", "Therefore, the answer is 18.",
         "So the final answer is: **$18**", "**Final Answer**\n\n\\[\n\\boxed{18}\n\\]", "**Final Answer: 18**",
         "Final answer: $18.00", r"The answer is \(18\).", r"The answer is \[18\]", r"Answer: \$18", "ANSWER: 18",
         "The answer is therefore 18.", "The answer is: 18 eggs. She sells them all.",
         r"\boxed{18} and again \boxed{18}", "The answer is 18 dollars.\n#### 18",
         "The answer is as follows: we add.\nThe answer is 18.", "#### 18/1", "#### x=18", "#### 18e0",
         "#### eighteen dollars", "#### Eighteen.", "#### $18.0", "#### 18 %", "#### 18<|im_end|>",
         "#### 18<|eot_id|>\n", "#### 18</s></s>"],
        ["**Answer**: 18", "A: 18", "The answer is 17 or 18", "The answer is either 18 or 19.",
         "The answer is 18 or 19.", "The answer is about 18.", "The answer is 18 more than 5.",
         "The answer is 18 times 3", "The answer is 18. Wait, actually 20.", "The answer is 18. No, it is 19.",
         "#### 18\n#### 19", r"\boxed{18} \boxed{19}", "<answer>18</answer><answer>19</answer>",
         "#### 18 hours and 30 minutes", "#### 18 1/2", "#### 18 and a half", "#### 18!", "#### 18^2", "#### 18-1",
         "#### 18x", "#### 18 + 0", "#### 18 = 9*2", "#### 9*2=18", "#### eight", "#### eighty", "#### one eight",
         "#### 1 8", "#### 18 8", "#### 18.01", "#### 18.5", "#### 1800%", "#### \u221218"],
    ),
    "-18": (
        ["#### \u221218", "#### -18", "#### minus eighteen", "#### \u201318"],
        [],
    ),
    "24": (
        ["#### 2 dozen"],
        [],
    ),
    "2": (
        [],
        ["#### 2 dozen"],
    ),
    "70000": (
        ["#### 70k", "#### 70K", "#### 70 thousand", "#### seventy thousand", "#### 7e4", "#### $70k",
         "#### 70,000 dollars", "#### 70{,}000", r"#### 70\,000"],
        ["#### 70.0", "#### 70,00", "#### 700,00", "#### 70 00"],
    ),
    "70": (
        [],
        ["#### 70k"],
    ),
    "1500000": (
        ["#### 1.5 million", "#### $1.5 million"],
        [],
    ),
    "1234567": (
        ["#### 1.234.567", "#### 1 234 567", "#### 1,234,567"],
        ["#### 1234,567"],
    ),
    "1234": (
        [],
        ["#### 1,2,3,4"],
    ),
    "105": (
        ["#### one hundred and five"],
        [],
    ),
    "121": (
        ["#### one hundred twenty-one"],
        [],
    ),
    "1200": (
        ["#### twelve hundred"],
        [],
    ),
    "21": (
        ["#### twenty one", "#### twenty-one apples"],
        [],
    ),
    "0.5": (
        ["#### 1/2", r"#### \frac12", r"#### \frac{1}{2}", "#### 50 percent", "#### .50"],
        ["#### half", "#### 5"],
    ),
    "0.25": (
        ["#### 25%"],
        [],
    ),
    "25": (
        ["#### 25%"],
        ["#### 0.25"],
    ),
    "3.5": (
        ["#### 3 1/2", r"#### 3\frac{1}{2}", r"#### 3 \frac12", "#### 3 1/2 hours", "#### 3.5 hours", "#### 3.5."],
        ["#### 35", "#### 3.5n0", "#### 3,5"],
    ),
    "48": (
        ["#### 48cm^2", "#### 48 cm\u00b2", "#### 48 m/s", "#### 48 miles per hour", "#### 48 square feet",
         "#### 48%", "#### \u20ac48", "#### 48\u20ac", "#### 48 euros", "#### 48 \u00b0C", "#### 48\u00b0",
         "#### 48 years old", "#### 48,", "#### 48;", "#### `48`", "#### _48_"],
        ["#### 48 boxes of 12", "#### 48 not 49", "#### 4 8 apples", "#### 48:00", "#### 48'", "#### 48...",
         "#### (48)", "#### \"48\"", "#### [48]"],
    ),
    "12.35": (
        ["#### 12.35 dollars", "#### $12.35.", "#### 1.235e1"],
        ["#### 12.34", "#### 12.35.1"],
    ),
    "0": (
        ["#### zero", "#### 0.0"],
        ["#### 1/0", "####", "#### none", ""],
    ),
    "7": (
        ["#### 7 #### 7", "the answer is\n\n7"],
        ["7 is the answer", "The answer isn't 7", "The answer is not 7.", "The answer is never 7",
         "The answer is greater than 7", "The answer is \u2264 7", "The answer is > 7", "The answer is 7?",
         "#### seven (7)", "#### 7 (seven)"],
    ),
    "8": (
        [],
        ["#### 7 #### 8"],
    ),
}
# fmt: on
