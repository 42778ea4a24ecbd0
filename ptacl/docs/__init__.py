"The documentation site, made from the stored notebooks: what a cell defines, pages, the site."
